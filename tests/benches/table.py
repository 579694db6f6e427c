#!/usr/bin/env python3
"""Writes the figures of BENCHMARKS.md and README.md from the raw data in results/, between their marks, and nothing else
there.

`table.py` writes them, `table.py --check` says whether the pages have what the raw data give (exit 1 if not).
"""

import json
import pathlib
import statistics
import sys

import chart

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE, README = ROOT / "BENCHMARKS.md", ROOT / "README.md"
BEGIN, END = "<!-- figures: made by tests/benches/table.py -->\n", "<!-- end of figures -->\n"
CLAIM, END_CLAIM = "<!-- claim: made by tests/benches/table.py -->\n", "<!-- end of claim -->\n"
SCALE, END_SCALE = "<!-- scale: made by tests/benches/table.py -->\n", "<!-- end of scale -->\n"


def spread(values, form="{:.2f}"):
    return " to ".join(form.format(value) for value in (min(values), max(values)))


def ranged(spread, mark=""):
    """A median and where it lies."""
    low, high = interval(spread)
    return f"{mark}{spread['median']:.3f}{mark} ({low:.3f} to {high:.3f})"


def interval(spread):
    """Of fewer than six rounds it is from the least to the greatest, and raw data of 2026-11-25 do not say it."""
    return spread.get("low", spread["min"]), spread.get("high", spread["max"])


def section(measured):
    bench = measured["bench"]
    environment = bench["environment"]
    loads = [run["load_average"] for run in bench["runs"] if run["load_average"] is not None]
    load = f", load average {spread(loads, '{:.1f}')}" if loads else ""
    lines = [
        f"### {chart.TITLES[measured['set_up']]}",
        "",
        f"Ollama {measured['ollama']}, {environment['processor'] or environment['system']}, {environment['cores']} cores, "
        f"Linux {environment['kernel']}, {bench['rounds']} rounds of {bench['prompts']} prompts{load}; "
        f"tropa counts {bench['machines']} machine{'' if bench['machines'] == 1 else 's'}. Raw data: "
        f"[bench-{measured['set_up']}.json](tests/benches/results/bench-{measured['set_up']}.json).",
        "",
        "| set-up | machines counted | seconds (median) | least to greatest | ratio | tokens/s | requests at once |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for figure in bench["figures"]:
        name = bench["set_ups"][figure["set_up"]]["name"]
        seconds, ratio = figure["seconds"], figure["ratio"]
        compared = "-"
        if figure["baseline"]:
            compared = "1"
        elif ratio:
            compared = ranged(ratio)
        more = "" if figure["whole"] else "over "
        bold = "**" if name == "tropa" else ""
        counted = bench["machines"] if name == "tropa" else ""
        lines.append(
            f"| {bold}{name}{bold} | {counted} | {more}{seconds['median']:.2f} | {seconds['min']:.2f} to "
            f"{seconds['max']:.2f} | {compared} | {figure['tokens_per_s']['median']:.0f} | {figure['at_once']:.2f} |"
        )
    for baseline in measured["baselines"]:
        seconds = baseline["seconds"]
        lines.append(
            f"| {baseline['what']} | {baseline['machines_counted']} | {statistics.median(seconds):.2f} | "
            f"{spread(seconds)} | | | |"
        )
    lines.append("")
    for aim in bench["aims"]:
        reached = aim["reached"]
        low, high = interval(reached)
        certain = not low <= aim["aim"] <= high
        bound = "at most" if aim["aim"] > 1 else "at least"
        lines.append(
            f"Aim: {aim['what']}, {bound} {aim['aim']}: {ranged(reached, '**')}, "
            f"{'met' if aim['met'] else 'missed'}{'' if certain else ', not for certain'}."
        )
    lines += ["", engine_spread(bench)]
    return "\n".join(lines) + "\n"


def engine_spread(bench):
    """How much one and the same prompt differs at the engine, and what tropa takes when the last one has ended."""
    kind = [set_up["kind"] for set_up in bench["set_ups"]]
    alone = [run for run in bench["runs"] if kind[run["set_up"]] in ("one_at_a_time", "tropa")]
    took = {}
    for run in alone:
        for attempt in run["attempts"]:
            if attempt["outcome"] == "done":
                took.setdefault(attempt["chunk"], []).append(attempt["busy_ms"])
    widest = max(took.values(), key=lambda times: max(times) / min(times))
    ends = [
        run["seconds"] * 1e3 - max(attempt["end_ms"] for attempt in run["attempts"])
        for run in alone
        if kind[run["set_up"]] == "tropa"
    ]
    return (
        f"One and the same prompt took {spread(widest, '{:.0f}')} ms at the engine, sent by tropa or one at a time; when "
        f"the last one had ended, tropa took {spread(ends, '{:.1f}')} ms."
    )


def claim():
    """What two installs cost that share a machine, and what distinct hardware gives, by the same raw data."""
    ratios = {}
    for measured in chart.read():
        bench = measured["bench"]
        kind = [set_up["kind"] for set_up in bench["set_ups"]]
        seconds = {}
        for run in bench["runs"]:
            if run["answered"] == bench["prompts"]:
                seconds.setdefault((kind[run["set_up"]], run["round"]), run["seconds"])
        for of in ("by_address", "clients"):
            over = [
                took / seconds["one_at_a_time", round_]
                for (what, round_), took in seconds.items()
                if what == of and ("one_at_a_time", round_) in seconds
            ]
            if over:
                ratios[of] = over
    shared, distinct = ratios["by_address"], [1 / ratio for ratio in ratios["clients"]]
    return (
        "Two Ollamas on one machine are not two machines. On a two-core box the same requests took "
        f"{spread(shared, '{:.0f}')} times as long when two installs shared the cores as when one of them did the work "
        f"alone, one request after the other; on distinct hardware two installs were {statistics.median(distinct):.1f} "
        "times as fast as one (Ollama, measured: `BENCHMARKS.md`).\n"
    )


def scale():
    """How the mesh grows with its agents: real ones, and the pure parts beyond."""
    measured = json.loads((chart.RESULTS / "scale.json").read_text())
    agents, cores = measured.get("agents"), measured.get("cores")
    parts = []
    if agents:
        parts += ["### Real agents", "", surroundings(agents), "", *agents_table(agents["rows"])]
    if cores:
        parts += ["", "### In the cores", "", surroundings(cores), "", *cores_table(cores["rows"], copy_bytes(agents, cores))]
    return "\n".join(parts) + "\n"


def surroundings(part):
    where = part["surroundings"]
    return (
        f"{where['cpu']}, {where['cpus']} cores, Linux {where['kernel']}, load average {where['load'].split()[0]} when it "
        f"began, at {where['at']}, commit {where['commit'][:7]}{'' if where['optimised'] else ', a debug build'}"
        f"{'; ' + part['note'] if 'note' in part else ''}. Raw data: [scale.json](tests/benches/results/scale.json)."
    )


def shown(value, form="{:.1f}"):
    """A figure, or a dash where a run of an earlier version has none."""
    return "-" if value is None else form.format(value)


def agents_table(rows):
    yield (
        "| agents | all known, s | all ready, s | least known to an agent | `tropa machines`, s | its MiB | MiB of an agent | "
        "CPU s of an agent to join | KiB of an agent to join | bytes/s of an agent at rest | watched, s | "
        "CPU of an agent at rest |"
    )
    yield "|" + " --- |" * 12
    alone = next((row for row in rows if row["agents"] == 1 and "failed" not in row), None)

    def beyond(row, what):
        """Without what an agent alone exchanges with its engine."""
        return row[what] - (alone[what] if alone else 0) if what in row else None

    def kib(number):
        return None if number is None else number / 1024

    for row in rows:
        if "failed" in row:
            yield f"| {row['agents']} | did not come about: {row['failed']} |" + " |" * 10
            continue
        reached = {
            name: f"{row[seconds]:.2f}" if row[name] == row["agents"] else f"{row[name]} only"
            for name, seconds in (("known", "known_s"), ("ready", "ready_s"), ("command_machines", "command_s"))
        }
        yield (
            f"| {row['agents']} | {reached['known']} | {reached['ready']} | {row['least_known']} | "
            f"{reached['command_machines']} | {row['command_kib'] / 1024:.0f} | {row['agent_kib'] / 1024:.1f} | "
            f"{row['joining_cpu_s_each']:.2f} | {shown(kib(beyond(row, 'joining_bytes_each')), '{:.0f}')} | "
            f"{beyond(row, 'bytes_per_s_each'):.0f} | {row['rest_s']:.0f} | {row['cpu_percent_each']:.2f} % |"
        )


def copy_bytes(agents, cores):
    """Bytes on the wire for each copy of an announcement, everything at rest counted in: of the largest real mesh."""
    real = [row for row in (agents or {"rows": []})["rows"] if "failed" not in row]
    alone = next((row["bytes_per_s_each"] for row in real if row["agents"] == 1), 0)
    for row in sorted(real, key=lambda row: -row["agents"]):
        for pure in cores["rows"]:
            if pure["agents"] == row["agents"] and pure.get("copies", 0) > 0:
                return (row["bytes_per_s_each"] - alone) / (pure["announcements_per_s"] * pure["copies"]), row["agents"]
    return None


def cores_table(rows, each):
    if each:
        yield (
            f"A copy of an announcement is counted with {each[0]:.0f} bytes: what the {each[1]} real agents above had on "
            "the wire at rest, all of it, for each copy."
        )
        yield ""
    yield (
        "| agents | on one machine | kept | KiB of roster for each | grouping, ms | CPU of grouping at rest | "
        "us of an event of the scheduler | ms of the event that brings the roster | announcements/s | "
        "copies of each for an agent | hops | bytes/s of an agent at rest |"
    )
    yield "|" + " --- |" * 12
    for row in rows:
        bytes_each = f"{row['announcements_per_s'] * row['copies'] * each[0]:.0f}" if each else "-"
        yield (
            f"| {row['agents']} | {row['a_machine']} | {row['kept']} | {row['roster_kib'] / row['kept']:.1f} | "
            f"{row['grouping_ms']:.2f} | {row['grouping_cpu_percent']:.2f} % | {row['event_us']:.1f} | "
            f"{row['roster_event_ms']:.1f} | {shown(row.get('announcements_per_s'))} | {shown(row.get('copies'))} | "
            f"{shown(row.get('hops'), '{}')} | "
            f"{bytes_each} |"
        )


def between(page, begin, end, what):
    """The page with this between the marks."""
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{what}\n{end}{after}"


def main():
    page, readme = PAGE.read_text(), README.read_text()
    figures = "\n".join(section(measured) for measured in chart.read())
    image = "![Seconds for the same prompts](tests/benches/results/bench.svg)\n"
    made = between(page, BEGIN, END, f"{figures}\n{image}")
    made = between(made, SCALE, END_SCALE, scale())
    claimed = between(readme, CLAIM, END_CLAIM, claim())
    if "--check" in sys.argv[1:]:
        for name, is_so in (("BENCHMARKS.md", page == made), ("README.md", readme == claimed)):
            if not is_so:
                sys.exit(f"{name} does not have the figures that the raw data give: run tests/benches/table.py")
        return
    PAGE.write_text(made)
    README.write_text(claimed)


if __name__ == "__main__":
    main()
