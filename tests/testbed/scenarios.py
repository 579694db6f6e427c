#!/usr/bin/env python3
"""The scenarios of the testbed: what each one is, and what has to be seen for it to pass.

Three sources are compared. What tropa says: `tropa machines --json`, the results. What the witness saw: every double
writes when it works into a directory that all share, and `tropa-testbed witness` computes from that how many installs
worked at one time and for how long two worked on one device. What tools that know addresses only would have done: the
baselines, which count machines in every scenario, really run in those marked `measured`, and by address also wherever
installs share a device: there the witness must see the overlap, or its silence on tropa would mean nothing.

`tests/testbed/run` prepares everything this needs and starts it.
"""

import argparse
import collections.abc
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import signal
import sys
import time

from baselines import baselines
from bed import ROOT, Bed, Failed, require, said

# What `tropa` ends with where no install can or may run a job.
NOTHING_CAN_RUN = 4


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
    # Tokens of an answer of a double; enough that a kill in the middle of a job comes in its middle.
    tokens: int = 20
    # Whether the engines are real ones.
    real: bool = False

    @property
    def max_tokens(self):
        """What is asked for: of doubles more than they make, so that no answer is cut."""
        return self.tokens if self.real else self.tokens + 4

    @property
    def shared(self):
        """Whether the engines work on one device."""
        return self.devices[0] == self.devices[1] and self.installs > 1


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
    """As `job`; the hosts cannot reach each other; without --allow-declared nobody is believed, and nothing runs."""
    report = bed.tropa_machines(declared=False)
    require(report["at_once"] == 0, f"declared hosts count without --allow-declared: {report['summary']}")
    refused = bed.tropa("run", "/job/prompts.txt", "-o", "/out/refused.jsonl", *bed.mesh(declared=False), check=False)
    require(refused.returncode == NOTHING_CAN_RUN and "--allow-declared" in refused.stderr,
            f"without --allow-declared a job ended with {refused.returncode}: {refused.stderr}")
    seen = bed.witness("refused")
    require(seen["work"] == 0, f"declared hosts got work without --allow-declared: {seen}")
    shown = bed.tropa("machines", *bed.mesh()).stdout
    require(shown.count("declared, not read") == 2, f"what is declared is not shown as declared: {shown}")
    bed.separate("home-agent", "office-agent")
    return job(bed)


def host_lost(bed):
    """One host is killed while it works: its chunks run on the other one, nothing is lost, it gets no more work."""
    running = bed.start_job()
    bed.wait_for_work(3)
    bed.docker("kill", "-s", "KILL", bed.ids["home-engine"], bed.ids["home-agent"])
    require(running.poll() is None, "the job was over before its host was lost")
    seconds = bed.end_job(running)
    seen = bed.witness("tropa")
    bed.results()
    bed.check_witness(seen, at_once=2)
    require(seen["unfinished"] <= 1, f"{seen['unfinished']} chunks were running on one install")
    did = seen["by_install"]
    require(did.get("home", 0) < did.get("office", 0), f"the host that was lost did no less: {did}")
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
    require(len(jobs) == 1 and 0 < jobs[0]["done"] < bed.prompts, f"jobs after the kill: {jobs}")
    begin = time.monotonic()
    bed.tropa("resume", jobs[0]["id"], "-o", "/out/results.jsonl", *bed.mesh())
    seconds = time.monotonic() - begin
    seen = bed.witness("tropa")
    bed.results()
    bed.check_witness(seen, at_once=2)
    # Each of the two installs had one chunk in work whose result nobody had acknowledged.
    bed.check_requests(seen, again=2)
    return {"seconds": seconds, "witness": seen, "share": bed.share, "done_before": jobs[0]["done"]}


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
    Scenario("host_lost", host_lost, differs=False, tokens=60),
    Scenario("host_slow", host_slow, differs=False),
    Scenario("coordinator_lost", coordinator_lost, differs=False, tokens=60),
    # From `tropa run` in the coordinator's container to the answers of two containers with real Ollama.
    # Answers so long that loading the model takes less than the other install needs for the whole job.
    Scenario("real_ollama", job, real=True, measured=True, tokens=720,
             services=("home-agent", "home-engine", "home-witness", "office-agent", "office-engine",
                       "office-witness")),
]


def run(scenario, work):
    """Runs a scenario; gives what was measured, with `failed` where it did not pass."""
    begin = time.monotonic()
    seen = {"name": scenario.name, "machines_expected": scenario.machines, "machines_found": 0}
    bed = Bed(scenario, work)
    try:
        bed.up()
        check_roster(bed, seen)
        seen["tropa"] = scenario.act(bed)
        seen["seconds"] = round(time.monotonic() - begin, 1)
        seen["baselines"] = baselines(bed)
    except Failed as failure:
        seen["failed"] = str(failure)
        bed.logs()
    finally:
        seen.setdefault("seconds", round(time.monotonic() - begin, 1))
        try:
            bed.down()
        except Failed as failure:
            seen.setdefault("failed", str(failure))
    return seen


def check_roster(bed, seen):
    """tropa counts what the scenario says, warns of that and of nothing else, and shows what is declared as declared."""
    scenario, report = bed.scenario, bed.roster()
    codes = sorted({warning["code"] for warning in report["warnings"] if not warning["information"]})
    seen.update(machines_found=len(report["machines"]), installs=report["installs"],
                at_once=report["at_once"], warnings=codes, summary=report["summary"],
                declared=sorted({machine["declared"] for machine in report["machines"]}))
    require(seen["machines_found"] == scenario.machines, f"counted wrongly: {report['summary']}")
    require(seen["installs"] == scenario.installs, f"{seen['installs']} installs")
    require(seen["at_once"] == scenario.at_once, f"{seen['at_once']} at once: {report['summary']}")
    require(tuple(codes) == scenario.warnings, f"warnings {codes}, expected {list(scenario.warnings)}")
    require(seen["declared"] == [scenario.declared], f"declared: {seen['declared']}")


def cannot(scenario):
    """Why it cannot run here; nothing where it can."""
    if scenario.real:
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
        "compose": compose_version(),
    }


def compose_version():
    return said([*os.environ["COMPOSE"].split(), "version", "--short"], check=False).stdout.strip()


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
    parser.add_argument("--compose", choices=("v1", "v2"), help="docker-compose 1.29 or docker compose; the newest there is")
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
            print(f"{scenario.name}: {scenario.machines} machines{', real engines' if scenario.real else ''}; "
                  f"{scenario.act.__doc__}")
        return 0
    if arguments.check:
        print(arguments.compose or "")
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
        seen = run(known[name], arguments.work)
        outcomes.append(seen)
        print(line_of(seen), flush=True)
        if "failed" in seen:
            print(f"{name}: {seen['failed']}", file=sys.stderr, flush=True)
    failed = sum(1 for seen in outcomes if "failed" in seen)
    print(f"{len(outcomes) - failed} passed, {failed} failed, {skipped} skipped, {time.monotonic() - begin:.0f} s, "
          f"by {os.environ['COMPOSE']} {compose_version()}")
    if arguments.results:
        text = json.dumps({"schema": "tropa.testbed/1", "surroundings": surroundings(), "scenarios": outcomes}, indent=1)
        arguments.results.write_text(text + "\n")
    if not outcomes:
        print("no testbed: every scenario that was asked for was skipped", file=sys.stderr)
        return 3
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
