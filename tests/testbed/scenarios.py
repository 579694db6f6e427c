#!/usr/bin/env python3
"""The scenarios of the testbed: what each one is, and what has to be seen for it to pass.

Three sources are compared. What tropa says: `tropa machines --json`, the results. What the witness saw: every double
writes when it works into a directory that all share, and `tropa-testbed witness` computes from that how many installs
worked at one time and for how long two worked on one device. What tools that know addresses only would have done: the
baselines, which count machines in every scenario, and really run in those marked `measured`.

`tests/testbed/run` prepares everything this needs and starts it.
"""

import argparse
import collections
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPTS = ROOT / "tests/testbed/prompts.txt"
BIN = "/usr/local/bin"
MODEL = "tiny:latest"

# Nothing takes that long; a machine that is overloaded needs a minute for what usually takes five seconds.
LIMIT_S = 240
# Two agents on one network need less than a second, a job's coordinator three to know that nobody else comes.
ROSTER_LIMIT_S = 60


class Failed(Exception):
    """Something that had to be seen was not."""


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One scenario. A field's default is what two healthy hosts on two networks show."""

    name: str
    act: collections.abc.Callable
    machines: int = 2
    at_once: int = 2
    installs: int = 2
    warnings: tuple = ()
    # The file that says what differs from docker-compose.yml.
    differs: bool = True
    declared: bool = True
    services: tuple = ("home-agent", "home-engine", "office-agent", "office-engine")
    coordinator: str = "coordinator"
    # Device of each engine as the witness knows it: engines on one device name one, and share a processor.
    devices: tuple = ("home", "office")
    # Whether the baselines run, besides counting.
    measured: bool = False
    # Tokens of an answer, at most; the doubles make 20.
    tokens: int = 64


def job(bed):
    """All prompts have good results in order; no two installs of one device overlap; as many installs as may do."""
    seconds = bed.job()
    seen = bed.witness("tropa")
    bed.results()
    bed.check_witness(seen, at_once=bed.scenario.at_once)
    bed.check_requests(seen)
    require(len(bed.share) == bed.scenario.at_once or bed.scenario.machines != bed.scenario.at_once,
            f"expected every machine to do some, got {bed.share}")
    return {"seconds": seconds, "witness": seen, "share": bed.share}


def two_hosts(bed):
    """As `job`; and the hosts cannot reach each other, and without --allow-declared nobody is believed."""
    report = bed.tropa_machines(declared=False)
    require(report["at_once"] == 0, f"declared hosts got work without --allow-declared: {report['summary']}")
    bed.separate("home-agent", "office-agent")
    return job(bed)


def host_lost(bed):
    """One host is killed while it works: its chunks run on the other one, nothing is lost, it gets no more work."""
    running = bed.start_job()
    bed.wait_for_work(3)
    bed.docker("kill", "-s", "KILL", bed.ids["home-engine"], bed.ids["home-agent"])
    seconds = bed.end_job(running)
    seen = bed.witness("tropa")
    bed.results()
    bed.check_witness(seen, at_once=2)
    require(seen["unfinished"] <= 1, f"{seen['unfinished']} chunks were running on one install")
    bed.check_requests(seen, again=1)
    report = bed.tropa_machines()
    # The other agent may still tell of it for a while, from what it has heard.
    require(report["at_once"] == 1, f"after the loss: {report['summary']}")
    return {"seconds": seconds, "witness": seen, "share": bed.share, "at_once_after": report["at_once"]}


def host_slow(bed):
    """One host has next to nothing of its processor: it does less, and the other waits for it at the end at most."""
    bed.docker("update", "--cpus", "0.03", bed.ids["home-engine"])
    seconds = bed.job()
    seen = bed.witness("tropa")
    bed.results()
    bed.check_witness(seen, at_once=2)
    did = seen["by_install"]
    require(did.get("home", 0) * 2 < did.get("office", 0), f"the slow host did {did}")
    return {"seconds": seconds, "witness": seen, "share": bed.share}


def coordinator_lost(bed):
    """The coordinator is killed amid a job and resumed: every result once, and nothing committed runs again."""
    running = bed.start_job()
    bed.wait_for_work(4)
    bed.docker("kill", "-s", "KILL", bed.ids["coordinator"])
    running.communicate()
    require(running.returncode not in (0, 2), "the job was over before its coordinator was killed")
    bed.docker("start", bed.ids["coordinator"])
    jobs = json.loads(bed.tropa("jobs", "--json").stdout)["jobs"]
    require(len(jobs) == 1 and jobs[0]["done"] < bed.prompts, f"jobs after the kill: {jobs}")
    begin = time.monotonic()
    bed.tropa("resume", jobs[0]["id"], "-o", "/out/results.jsonl", *bed.mesh())
    seconds = time.monotonic() - begin
    seen = bed.witness("tropa")
    bed.results()
    bed.check_witness(seen, at_once=2)
    # Each of the two installs had one chunk in work whose result nobody had acknowledged.
    bed.check_requests(seen, again=2)
    return {"seconds": seconds, "witness": seen, "share": bed.share, "done_before": jobs[0]["done"]}


def real_ollama(bed):
    """Two containers with real Ollama, from `tropa run` in the coordinator's container to the answers."""
    seconds = bed.job()
    seen = bed.witness("tropa")
    bed.results()
    bed.check_witness(seen, at_once=2)
    bed.check_requests(seen)
    return {"seconds": seconds, "witness": seen, "share": bed.share}


SCENARIOS = [
    Scenario("undeclared", job, machines=1, at_once=1, declared=False, devices=("box", "box"),
             measured=True),
    Scenario("same_host_twice", job, machines=1, at_once=1, devices=("home", "home")),
    Scenario("two_hosts", two_hosts, differs=False, measured=True),
    Scenario("behind_one_address", job, coordinator="outsider", measured=True,
             services=("home-agent", "home-engine", "office-agent", "office-engine", "gateway")),
    Scenario("one_host_on_two_networks", job, machines=1, at_once=1, installs=1,
             services=("home-agent", "home-engine")),
    Scenario("cloned_machine_id", job, warnings=("CLONED_IMAGE",)),
    Scenario("shared_gpu_id", job, at_once=1, warnings=("GPU_UUID_CONFLICT",), devices=("gpu", "gpu")),
    Scenario("host_lost", host_lost, differs=False),
    Scenario("host_slow", host_slow, differs=False),
    Scenario("coordinator_lost", coordinator_lost, differs=False),
    Scenario("real_ollama", real_ollama, measured=True, tokens=24,
             services=("home-agent", "home-engine", "home-witness", "office-agent", "office-engine",
                       "office-witness")),
]


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
        shared = scenario.devices[0] == scenario.devices[1]
        first, second = str(cpus[0]), str(cpus[0 if shared else -1])
        self.env = dict(os.environ)
        self.env.update(
            OUT=str(self.dir / "out"), WITNESS=str(self.dir / "witness"), TINY=str(self.dir / "tiny"),
            HOME_DEVICE=scenario.devices[0], OFFICE_DEVICE=scenario.devices[1], HOME_CPUS=first, OFFICE_CPUS=second,
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
        if self.scenario.act is real_ollama:
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
        engine = 11435 if self.scenario.act is real_ollama else 11434
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

    def tropa(self, *arguments):
        return self.exec(self.scenario.coordinator, "tropa", *arguments)

    def tropa_machines(self, declared=None):
        return json.loads(self.tropa("machines", "--json", *self.mesh(declared)).stdout)

    def start_job(self):
        command = ["docker", "exec", self.ids[self.scenario.coordinator], f"{BIN}/tropa", "run", "/job/prompts.txt",
                   "-o", "/out/results.jsonl", "--max-tokens", str(self.scenario.tokens), *self.mesh()]
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

    def check_roster(self):
        """Waits until all installs are there, then compares. Gives the report, which may be wrong, and the time."""
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

    def run(self):
        """Runs the scenario; gives what was measured, with `failed` where it did not pass."""
        scenario, begin = self.scenario, time.monotonic()
        seen = {"name": scenario.name, "machines_expected": scenario.machines, "machines_found": 0}
        try:
            self.up()
            self.reached = self.hosts()
            report = self.check_roster()
            codes = sorted({warning["code"] for warning in report["warnings"] if not warning["information"]})
            seen.update(machines_found=len(report["machines"]), installs=report["installs"],
                        at_once=report["at_once"], warnings=codes, summary=report["summary"],
                        declared=all(machine["declared"] for machine in report["machines"]))
            require(seen["machines_found"] == scenario.machines, f"counted wrongly: {report['summary']}")
            require(seen["installs"] == scenario.installs, f"{seen['installs']} installs")
            require(seen["at_once"] == scenario.at_once, f"{seen['at_once']} at once: {report['summary']}")
            require(tuple(codes) == scenario.warnings, f"warnings {codes}, expected {list(scenario.warnings)}")
            require(seen["declared"] == scenario.declared, "what is declared is not shown as declared")
            seen["tropa"] = scenario.act(self)
            seen["seconds"] = round(time.monotonic() - begin, 1)
            seen["baselines"] = baselines(self)
        except Failed as failure:
            seen["failed"] = str(failure)
            self.logs()
        finally:
            seen.setdefault("seconds", round(time.monotonic() - begin, 1))
            try:
                self.down()
            except Failed as failure:
                seen.setdefault("failed", str(failure))
        return seen

    def logs(self):
        for log in ("machines.json",):
            if (self.dir / log).exists():
                print(f"--- {log}\n{(self.dir / log).read_text()[-4000:]}", file=sys.stderr)
        for service, identity in self.ids.items():
            logged = said(["docker", "logs", "--tail", "30", identity], check=False)
            print(f"--- {service}\n{logged.stdout}{logged.stderr}", file=sys.stderr)


# Baselines: the same prompts to the same engines, by tools that know addresses only. See tests/spread.rs.

def baselines(bed):
    """How many machines each of them counts; and, where the scenario is measured, how it fares."""
    installs = [f"{host}:{engine}" for host, _, engine in bed.reached]
    counts = {
        "by_address": len(set(installs)),
        "unique_addresses": len({host for host, _, _ in bed.reached}),
        "parallel_hosts": len(set(installs)),
        "parallel_j4": 1,
    }
    rows = {name: {"counted": counted} for name, counted in counts.items()}
    if not bed.scenario.measured:
        return rows
    real = os.getuid() == 0 and shutil.which("parallel") and shutil.which("curl")
    for name, row in rows.items():
        if name.startswith("parallel") and real:
            row.update(gnu_parallel(bed, installs if name == "parallel_hosts" else installs[:1] * 4))
        elif name == "parallel_hosts":
            row.update(spread(bed, ["slots", "-j", str(len(installs))], installs))
        elif name == "parallel_j4":
            row.update(spread(bed, ["slots", "-j", "4"], installs[:1]))
        else:
            row.update(spread(bed, [name.replace("_", "-")], installs))
            require(row["counted"] == counts[name], f"{name} counted {row['counted']}, not {counts[name]}")
        row["witness"] = bed.witness(name)
    return rows


def spread(bed, way, installs):
    """By our own program, in the coordinator's container."""
    said_so = bed.exec(bed.scenario.coordinator, "tropa-testbed", "spread", *way, "--prompts", "/job/prompts.txt",
                       "--model", MODEL, "--max-tokens", str(bed.scenario.tokens), *installs).stdout
    row = json.loads(said_so)
    return {"counted": row["counted"], "seconds": row["seconds"], "by": "tropa-testbed"}


def gnu_parallel(bed, slots):
    """By GNU parallel and curl, in the coordinator's network: the n-th slot asks the n-th install of the list."""
    requests = bed.dir / "requests"
    requests.mkdir(exist_ok=True)
    for number, prompt in enumerate(line for line in PROMPTS.read_text().splitlines() if line.strip()):
        (requests / f"{number:02}.json").write_text(json.dumps({
            "model": MODEL, "messages": [{"role": "user", "content": prompt}], "stream": False,
            "options": {"num_ctx": 1024, "num_predict": bed.scenario.tokens}, "truncate": False, "shift": False, "think": False,
            "keep_alive": "600s"}))
    (bed.dir / "slots").write_text("".join(f"{slot}\n" for slot in slots))
    ask = f"curl -sS --noproxy '*' -d @{{}} http://$(sed -n {{%}}p {bed.dir}/slots)/api/chat && echo"
    begin = time.monotonic()
    answers = said(["nsenter", f"--net=/proc/{bed.pid(bed.scenario.coordinator)}/ns/net", "parallel", "--will-cite",
                    "-j", str(len(slots)), "--halt", "now,fail=1", ask, ":::",
                    *sorted(map(str, requests.iterdir()))]).stdout
    seconds = time.monotonic() - begin
    whole = answers.count('"done":true')
    require(whole == bed.prompts, f"GNU parallel got {whole} answers for {bed.prompts} prompts")
    version = said(["parallel", "--version"]).stdout.splitlines()[0]
    return {"seconds": seconds, "by": version}


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


def cannot(scenario):
    """Why it cannot run here; nothing where it can."""
    if scenario.act is real_ollama:
        missing = [name for name in ("TROPA_OLLAMA_BIN", "TROPA_TINY_GGUF") if not os.environ.get(name)]
        if missing:
            return f"{' and '.join(missing)} not set (tests/real_ollama/build.sh --export)"
    return ""


def surroundings():
    """What the figures depend on."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = {line.split(":")[1].strip() for line in file if line.startswith("model name")}
    commit = said(["git", "rev-parse", "HEAD"], check=False, cwd=ROOT).stdout.strip()
    return {
        "at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit, "kernel": platform.release(), "cpus": len(os.sched_getaffinity(0)),
        "cpu": sorted(models), "load": os.getloadavg(),
        "docker": said(["docker", "version", "-f", "{{.Server.Version}}"], check=False).stdout.strip(),
        "compose": said([*os.environ["COMPOSE"].split(), "version", "--short"], check=False).stdout.strip(),
    }


def line_of(seen):
    """The one line of a scenario."""
    verdict = "fail" if "failed" in seen else "pass"
    text = (f"{seen['name']}: machines expected {seen['machines_expected']} found {seen['machines_found']} "
            f"{verdict} {seen['seconds']:.1f} s")
    if "baselines" in seen:
        count = {name: row["counted"] for name, row in seen["baselines"].items()}
        text += (f"; by address {count['by_address']}, unique addresses {count['unique_addresses']}, "
                 f"GNU parallel {count['parallel_hosts']}, -j4 {count['parallel_j4']}")
    return text


def main():
    parser = argparse.ArgumentParser(prog="tests/testbed/run")
    parser.add_argument("--list", action="store_true", help="print the scenarios and what they claim")
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--results", type=pathlib.Path, help="write what was measured into this file")
    parser.add_argument("scenario", nargs="*", default=["all"], help="all, or names of scenarios")
    arguments = parser.parse_args()
    known = {scenario.name: scenario for scenario in SCENARIOS}
    names = list(known) if "all" in arguments.scenario else arguments.scenario
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"no scenario {', '.join(unknown)}; there are {', '.join(known)}")
    if arguments.list:
        for scenario in SCENARIOS:
            print(f"{scenario.name}: {scenario.machines} machines; {scenario.act.__doc__}")
    if arguments.list or arguments.check:
        return 0

    # So that a run that is stopped takes its containers down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    outcomes, skipped, begin = [], 0, time.monotonic()
    for name in names:
        reason = cannot(known[name])
        if reason:
            skipped += 1
            print(f"{name}: skipped: {reason}", flush=True)
            if os.environ.get("TROPA_SKIPPED"):
                with open(os.environ["TROPA_SKIPPED"], "a", encoding="utf-8") as file:
                    file.write(f"skipped: testbed {name}: {reason}\n")
            continue
        seen = Bed(known[name], arguments.work).run()
        outcomes.append(seen)
        print(line_of(seen), flush=True)
        if "failed" in seen:
            print(f"{name}: {seen['failed']}", file=sys.stderr, flush=True)
    failed = sum(1 for seen in outcomes if "failed" in seen)
    print(f"{len(outcomes) - failed} passed, {failed} failed, {skipped} skipped, {time.monotonic() - begin:.0f} s")
    if arguments.results:
        text = json.dumps({"schema": "tropa.testbed/1", "surroundings": surroundings(), "scenarios": outcomes}, indent=1)
        arguments.results.write_text(text + "\n")
    if not outcomes:
        print("no testbed: every scenario that was asked for was skipped", file=sys.stderr)
        return 3
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
