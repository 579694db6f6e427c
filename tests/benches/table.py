#!/usr/bin/env python3
"""Writes the figures of BENCHMARKS.md from the raw data in results/, between its two marks, and nothing else there.

`table.py` writes them, `table.py --check` says whether the page has what the raw data give (exit 1 if not).
"""

import pathlib
import statistics
import sys

import chart

PAGE = pathlib.Path(__file__).resolve().parents[2] / "BENCHMARKS.md"
BEGIN, END = "<!-- figures: made by tests/benches/table.py -->\n", "<!-- end of figures -->\n"


def spread(values, form="{:.2f}"):
    return " to ".join(form.format(value) for value in (min(values), max(values)))


def ranged(spread, mark=""):
    """A median and where it lies."""
    return f"{mark}{spread['median']:.3f}{mark} ({spread['low']:.3f} to {spread['high']:.3f})"


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
        bound = "at most" if aim["aim"] > 1 else "at least"
        lines.append(
            f"Aim: {aim['what']}, {bound} {aim['aim']}: {ranged(reached, '**')}, "
            f"{'met' if aim['met'] else 'missed'}{'' if aim['certain'] else ', not for certain'}."
        )
    return "\n".join(lines) + "\n"


def main():
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    figures = "\n".join(section(measured) for measured in chart.read())
    image = "![Seconds for the same prompts](tests/benches/results/bench.svg)\n"
    made = f"{before}{BEGIN}\n{figures}\n{image}\n{END}{after}"
    if "--check" in sys.argv[1:]:
        if page != made:
            sys.exit("BENCHMARKS.md does not have the figures that the raw data give: run tests/benches/table.py")
        return
    PAGE.write_text(made)


if __name__ == "__main__":
    main()
