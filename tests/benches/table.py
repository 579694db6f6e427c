#!/usr/bin/env python3
"""Writes the figures of BENCHMARKS.md from the raw data in results/, between its marks, and nothing else there.

`table.py` writes them, `table.py --check` says whether the page has what the raw data give (exit 1 if not).
"""

import json
import pathlib
import statistics
import sys

import chart

PAGE = pathlib.Path(__file__).resolve().parents[2] / "BENCHMARKS.md"
BEGIN, END = "<!-- figures: made by tests/benches/table.py -->\n", "<!-- end of figures -->\n"
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
    return "\n".join(lines) + "\n"


def scale():
    """How the mesh grows with its agents."""
    measured = json.loads((chart.RESULTS / "scale.json").read_text())
    where = measured["surroundings"]
    lines = [
        f"{where['cpu']}, {where['cpus']} cores, Linux {where['kernel']}, load average {where['load'].split()[0]} when it "
        f"began{'; ' + measured['note'] if 'note' in measured else ''}. Raw data: "
        "[scale.json](tests/benches/results/scale.json).",
        "",
        "| agents | all known, s | all ready, s | least known to an agent | `tropa machines`, s | its MiB | MiB of an agent | "
        "CPU s of an agent to join | bytes/s of an agent at rest | CPU of an agent at rest |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    alone = next((row["bytes_per_s_each"] for row in measured["agents"] if row["agents"] == 1), 0)
    for row in measured["agents"]:
        if "failed" in row:
            lines.append(f"| {row['agents']} | did not come about: {row['failed']} |" + " |" * 8)
            continue
        reached = {
            name: f"{row[seconds]:.2f}" if row[name] == row["agents"] else f"{row[name]} only"
            for name, seconds in (("known", "known_s"), ("ready", "ready_s"), ("command_machines", "command_s"))
        }
        lines.append(
            f"| {row['agents']} | {reached['known']} | {reached['ready']} | {row['least_known']} | "
            f"{reached['command_machines']} | {row['command_kib'] / 1024:.0f} | {row['agent_kib'] / 1024:.1f} | "
            f"{row['joining_cpu_s_each']:.2f} | {row['bytes_per_s_each'] - alone:.0f} | {row['cpu_percent_each']:.2f} % |"
        )
    return "\n".join(lines) + "\n"


def between(page, begin, end, what):
    """The page with this between the marks."""
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{what}\n{end}{after}"


def main():
    page = PAGE.read_text()
    figures = "\n".join(section(measured) for measured in chart.read())
    image = "![Seconds for the same prompts](tests/benches/results/bench.svg)\n"
    made = between(page, BEGIN, END, f"{figures}\n{image}")
    made = between(made, SCALE, END_SCALE, scale())
    if "--check" in sys.argv[1:]:
        if page != made:
            sys.exit("BENCHMARKS.md does not have the figures that the raw data give: run tests/benches/table.py")
        return
    PAGE.write_text(made)


if __name__ == "__main__":
    main()
