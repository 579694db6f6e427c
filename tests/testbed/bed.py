"""One scenario's containers: what can be done with them, and what can be seen of them."""

import collections
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPTS = ROOT / "tests/testbed/prompts.txt"
BIN = "/usr/local/bin"

# Nothing takes that long; a machine that is overloaded needs a minute for what usually takes five seconds.
LIMIT_S = 240
# Two agents on one network need less than a second, a job's coordinator three to know that nobody else comes.
ROSTER_LIMIT_S = 60


class Failed(Exception):
    """Something that had to be seen was not."""


class Bed:
    """One scenario's containers, from up to down."""

    def __init__(self, scenario, work):
        self.scenario = scenario
        self.project = f"{os.environ['TAG']}-{scenario.name.replace('_', '-')}"
        self.dir = pathlib.Path(work) / scenario.name
        for name in ("out", "witness", "tiny"):
            (self.dir / name).mkdir(parents=True)
        self.prompts = sum(1 for line in PROMPTS.read_text().splitlines() if line.strip())
        self.ids = {}
        self.share = {}
        self.reached = []
        self.job_begin = time.monotonic()
        cpus = sorted(os.sched_getaffinity(0))
        # Engines on one device share one processor; others have one each, as far as this machine has two.
        first, second = str(cpus[0]), str(cpus[0 if scenario.shared else -1])
        self.env = dict(os.environ)
        self.env.update(
            OUT=str(self.dir / "out"), WITNESS=str(self.dir / "witness"), TINY=str(self.dir / "tiny"),
            HOME_DEVICE=scenario.devices[0], OFFICE_DEVICE=scenario.devices[1], HOME_CPUS=first, OFFICE_CPUS=second,
            TOKENS=str(scenario.tokens),
        )
        files = ["docker-compose.yml", "tests/testbed/scenarios/every.yml"]
        if scenario.differs:
            files.append(f"tests/testbed/scenarios/{scenario.name}.yml")
        self.files = [part for file in files for part in ("-f", str(ROOT / file))]

    # Containers.

    def compose(self, *arguments):
        command = [*os.environ["COMPOSE"].split(), "-p", self.project, *self.files,
                   "--profile", "job", "--profile", "double", *arguments]
        return said(command, env=self.env, cwd=ROOT)

    def docker(self, *arguments):
        return said(["docker", *arguments])

    def up(self):
        self.compose("up", "-d", "--no-build", self.scenario.coordinator, *self.scenario.services)
        listed = self.docker("ps", "--no-trunc", "--filter", f"label=com.docker.compose.project={self.project}",
                             "--format", '{{.ID}} {{.Label "com.docker.compose.service"}}').stdout
        self.ids = {service: identity for identity, service in map(str.split, listed.splitlines())}
        missing = {self.scenario.coordinator, *self.scenario.services} - set(self.ids)
        require(not missing, f"did not stay up: {sorted(missing)}")
        self.reached = self.hosts()
        if self.scenario.real:
            self.make_models()

    def make_models(self):
        shutil.copy(os.environ["TROPA_TINY_GGUF"], self.dir / "tiny/tiny.gguf")
        # Ollama takes a thread for each processor of the machine, also where it may use only one.
        (self.dir / "tiny/Modelfile").write_text("FROM /tiny/tiny.gguf\nPARAMETER num_thread 1\n")
        for engine in ("home-engine", "office-engine"):
            # It answers when it has written its key; that takes a moment.
            wait(lambda: self.exec(engine, "ollama", "list", check=False).returncode == 0, f"{engine} to answer")
            self.exec(engine, "ollama", "create", "tiny", "-f", "/tiny/Modelfile")

    def down(self):
        self.compose("down", "-v", "--remove-orphans", "-t", "1")

    def exec(self, service, program, *arguments, check=True):
        return said(["docker", "exec", self.ids[service], f"{BIN}/{program}", *arguments], check=check)

    def address(self, service, network):
        """The address of a service in a network of the scenario."""
        found = self.docker("inspect", "-f", f'{{{{(index .NetworkSettings.Networks "{self.project}_{network}").IPAddress}}}}',
                            self.ids[service]).stdout.strip()
        require(found, f"{service} has no address in {network}")
        return found

    def pid(self, service):
        return self.docker("inspect", "-f", "{{.State.Pid}}", self.ids[service]).stdout.strip()

    def hosts(self):
        """The addresses of the hosts as the coordinator knows them, and which ports lead to agents and engines."""
        if self.scenario.name == "behind_one_address":
            gateway = self.address("gateway", "street")
            return [(gateway, 11634, 11434), (gateway, 11635, 11435)]
        if self.scenario.name == "one_host_on_two_networks":
            return [(self.address("home-agent", network), 11634, 11434) for network in ("home", "office")]
        # Real engines are reached through their witnesses.
        engine = 11435 if self.scenario.real else 11434
        return [(self.address(f"{name}-agent", name), 11634, engine) for name in ("home", "office")]

    def separate(self, *services):
        """Each listens on its own address, and none reaches another's. Seen from inside, so only root can look."""
        if os.getuid() != 0:
            return
        def reaches(service, address):
            probe = ["nsenter", f"--net=/proc/{self.pid(service)}/ns/net", "timeout", "2", "bash", "-c",
                     f"exec 3<>/dev/tcp/{address}/11634"]
            return said(probe, check=False).returncode == 0
        addresses = {service: self.address(service, service.split("-")[0]) for service in services}
        for service in services:
            for other, address in addresses.items():
                require(reaches(service, address) == (service == other), f"{service} reaches {other}, or not itself")

    # tropa.

    def mesh(self, declared=None):
        declared = self.scenario.declared if declared is None else declared
        peers = [part for host, agent, _ in self.reached for part in ("--peer", f"{host}:{agent}")]
        return [*peers, *(["--allow-declared"] if declared else [])]

    def tropa(self, *arguments, check=True):
        return self.exec(self.scenario.coordinator, "tropa", *arguments, check=check)

    def tropa_machines(self, declared=None):
        return json.loads(self.tropa("machines", "--json", *self.mesh(declared)).stdout)

    def start_job(self):
        command = ["docker", "exec", self.ids[self.scenario.coordinator], f"{BIN}/tropa", "run", "/job/prompts.txt",
                   "-o", "/out/results.jsonl", "--max-tokens", str(self.scenario.max_tokens), *self.mesh()]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def end_job(self, running):
        try:
            _, errors = running.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            running.kill()
            raise Failed(f"the job did not end within {LIMIT_S} s") from None
        require(running.returncode == 0, f"the job ended with status {running.returncode}: {errors}")
        return time.monotonic() - self.job_begin

    def job(self):
        self.job_begin = time.monotonic()
        return self.end_job(self.start_job())

    def results(self):
        """Every prompt has exactly one result, in order and without an error; fills in who did how many."""
        rows = [json.loads(line) for line in (self.dir / "out/results.jsonl").read_text().splitlines()]
        order = [row["tropa"]["index"] for row in rows]
        bad = [row for row in rows if row.get("error") is not None or not row["text"]]
        require(order == list(range(self.prompts)) and not bad, f"results in order {order}, bad ones: {bad}")
        self.share = dict(sorted(collections.Counter(row["tropa"]["machine"] for row in rows).items()))

    # The witness.

    def wait_for_work(self, count):
        """Waits until so many requests have ended on the engines."""
        self.job_begin = time.monotonic()
        line = self.dir / "witness/timeline.jsonl"
        wait(lambda: line.exists() and line.read_text().count('"end"') >= count, f"{count} requests to end")

    def witness(self, phase):
        """What the doubles did since the last call; nothing of it is left for the next one."""
        aside = self.dir / f"witness/{phase}"
        aside.mkdir()
        line = self.dir / "witness/timeline.jsonl"
        if line.exists():
            line.rename(aside / "timeline.jsonl")
        return json.loads(said([f"{os.environ['TROPA_TESTBED_BIN']}/tropa-testbed", "witness", str(aside)]).stdout)

    def check_witness(self, seen, at_once):
        overlaps = {device: ms for device, ms in seen["overlap_ms"].items() if ms}
        require(not overlaps, f"installs of one device worked at one time: {overlaps} ms")
        require(seen["at_once"] == at_once, f"{seen['at_once']} installs worked at one time, expected {at_once}")

    def check_requests(self, seen, again=0):
        """Every prompt was asked, and none more often than there is a reason: so many may have been lost, and at the
        end what is late on one device may run on each idle one too."""
        most = self.prompts + again + self.scenario.at_once - 1
        require(self.prompts <= seen["work"] <= most, f"{seen['work']} requests for {self.prompts} prompts, at most {most}")

    # The whole.

    def roster(self):
        """What tropa says of the mesh once all installs are there, or when that has taken too long."""
        scenario, begin = self.scenario, time.monotonic()
        while True:
            report = self.tropa_machines()
            up = sum(1 for machine in report["machines"] for agent in machine["agents"] if agent["version"])
            if up == scenario.installs and report["at_once"] == scenario.at_once:
                break
            if time.monotonic() - begin > ROSTER_LIMIT_S:
                break
        (self.dir / "machines.json").write_text(json.dumps(report, indent=1))
        return report

    def logs(self):
        for log in ("machines.json",):
            if (self.dir / log).exists():
                print(f"--- {log}\n{(self.dir / log).read_text()[-4000:]}", file=sys.stderr)
        for service, identity in self.ids.items():
            logged = said(["docker", "logs", "--tail", "30", identity], check=False)
            print(f"--- {service}\n{logged.stdout}{logged.stderr}", file=sys.stderr)


# Around it.

def require(holds, otherwise):
    if not holds:
        raise Failed(otherwise)


def wait(holds, what):
    """Waits for a condition."""
    begin = time.monotonic()
    while not holds():
        require(time.monotonic() - begin < LIMIT_S, f"waited {LIMIT_S} s in vain for {what}")
        time.sleep(0.02)


def said(command, check=True, env=None, cwd=None):
    """Runs a command and gives what it said."""
    try:
        done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=LIMIT_S,
                              stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"{command[:4]} did not end within {LIMIT_S} s") from None
    if check and done.returncode != 0:
        raise Failed(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr[-2000:]}")
    return done
