"""Baselines: the same prompts to the same engines, by tools that know addresses only. See tests/spread.rs."""

import json
import os
import shutil
import time

from bed import PROMPTS, require, said

MODEL = "tiny:latest"


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
    # Who shares a device must be seen to overlap when addresses are counted: else the witness is blind, and what it
    # said of tropa means nothing.
    chosen = counts if bed.scenario.measured else ["by_address"] if bed.scenario.shared else []
    for name in chosen:
        rows[name].update(baseline(bed, name, installs))
        require(rows[name]["counted"] == counts[name],
                f"{name} counted {rows[name]['counted']}, not {counts[name]}")
        rows[name]["witness"] = seen = bed.witness(name)
        check_baseline(bed, name, seen, counts)
    return rows


def baseline(bed, name, installs):
    """Runs one of them; GNU parallel itself where it is there, else by its rule."""
    slots = {"parallel_hosts": installs, "parallel_j4": installs[:1] * 4}.get(name)
    if slots is None:
        return spread(bed, [name.replace("_", "-")], installs)
    if os.getuid() == 0 and shutil.which("parallel") and shutil.which("curl"):
        return {"counted": len(set(slots)), **gnu_parallel(bed, slots)}
    return spread(bed, ["slots", "-j", str(len(slots))], sorted(set(slots)))


def check_baseline(bed, name, seen, counts):
    """It asked everything once, on as many installs at a time as it counts machines, whatever they share."""
    require(seen["work"] == bed.prompts, f"{name} sent {seen['work']} requests for {bed.prompts} prompts")
    require(seen["at_once"] == counts[name], f"{name} had {seen['at_once']} installs at work, not {counts[name]}")
    overlap = sum(seen["overlap_ms"].values())
    require((overlap > 0) == (bed.scenario.shared and counts[name] > 1),
            f"{name}: two installs were on one device for {overlap} ms")


def spread(bed, way, installs):
    """By our own program, in the coordinator's container."""
    said_so = bed.exec(bed.scenario.coordinator, "tropa-testbed", "spread", *way, "--prompts", "/job/prompts.txt",
                       "--model", MODEL, "--max-tokens", str(bed.scenario.max_tokens), *installs).stdout
    row = json.loads(said_so)
    return {"counted": row["counted"], "seconds": row["seconds"], "by": "tropa-testbed"}


def gnu_parallel(bed, slots):
    """By GNU parallel and curl, in the coordinator's network: the n-th slot asks the n-th install of the list."""
    requests = bed.dir / "requests"
    requests.mkdir(exist_ok=True)
    for number, prompt in enumerate(line for line in PROMPTS.read_text().splitlines() if line.strip()):
        (requests / f"{number:02}.json").write_text(json.dumps({
            "model": MODEL, "messages": [{"role": "user", "content": prompt}], "stream": False,
            "options": {"num_ctx": 1024, "num_predict": bed.scenario.max_tokens}, "truncate": False, "shift": False, "think": False,
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
