#!/usr/bin/env python3
"""Draws tests/benches/results/bench.svg from the raw data beside it, and from nothing else.

`chart.py` writes the file, `chart.py --check` says whether it is what the raw data give (exit 1 if not). Only the
standard library; the same data give the same bytes. A logarithmic axis: what is 20 times slower must fit.
"""

import json
import math
import pathlib
import statistics
import sys
from xml.sax.saxutils import escape

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
TITLES = {
    "shared": "One machine, two installs that use the same cores",
    "distinct": "Distinct hardware: a core for each of two installs",
    "batching": "One install that batches, OLLAMA_NUM_PARALLEL=4, both cores",
}
WIDTH, LEFT, RIGHT, ROW, HEAD = 860, 310, 130, 26, 60
COLOURS = {"tropa": "#1b7f5c", "by_address": "#b3402a"}


def rows(measured):
    """Name, kind and seconds per round of every set-up, tools that know addresses only after them."""
    bench = measured["bench"]
    for at, set_up in enumerate(bench["set_ups"]):
        seconds = [run["seconds"] for run in bench["runs"] if run["set_up"] == at]
        whole = all(run["answered"] == bench["prompts"] for run in bench["runs"] if run["set_up"] == at)
        yield set_up["name"], set_up["kind"], seconds, whole
    for baseline in measured["baselines"]:
        yield baseline["what"], "baseline", baseline["seconds"], True


def axis(all_measured):
    """One axis for all set-ups, so that their bars can be compared: logarithms of its ends."""
    seconds = [value for measured in all_measured for _, _, values, _ in rows(measured) for value in values]
    return math.floor(math.log10(min(seconds) * 0.9)), math.log10(max(seconds) * 1.1)


def panel(measured, top, low, high):
    """One set-up: a bar for the median, a line from the least to the greatest."""
    data = list(rows(measured))
    scale = (WIDTH - LEFT - RIGHT) / (high - low)

    def place(seconds):
        return LEFT + (math.log10(seconds) - low) * scale

    out = [f'<text x="16" y="{top + 22}" class="title">{escape(TITLES[measured["set_up"]])}</text>']
    bottom = top + HEAD - 12 + ROW * len(data)
    ticks = [step * 10.0**power for power in range(low, math.floor(high) + 1) for step in (1, 2, 5)]
    for tick in (tick for tick in ticks if math.log10(tick) <= high):
        x = place(tick)
        out.append(f'<line x1="{x:.1f}" y1="{top + 44}" x2="{x:.1f}" y2="{bottom}" class="grid"/>')
        out.append(f'<text x="{x:.1f}" y="{top + 40}" class="axis">{tick:g} s</text>')
    for at, (name, kind, seconds, whole) in enumerate(data):
        y = top + HEAD + ROW * at
        median = statistics.median(seconds)
        colour = COLOURS.get(kind, "#8a8f98" if kind == "baseline" else "#4a6fa5")
        more = "" if whole else "over "
        out.append(f'<text x="{LEFT - 8}" y="{y + 4}" class="name">{escape(name)}</text>')
        out.append(
            f'<rect x="{LEFT}" y="{y - 8}" width="{place(median) - LEFT:.1f}" height="16" fill="{colour}"/>'
        )
        out.append(
            f'<line x1="{place(min(seconds)):.1f}" y1="{y}" x2="{place(max(seconds)):.1f}" y2="{y}" class="spread"/>'
        )
        out.append(f'<text x="{place(max(seconds)) + 6:.1f}" y="{y + 4}" class="value">{more}{median:.2f} s</text>')
    return out, bottom + 24


def read():
    """The raw data of every set-up that has been measured, in the order of the titles."""
    files = [RESULTS / f"bench-{name}.json" for name in TITLES]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def draw():
    all_measured = read()
    low, high = axis(all_measured)
    top, body = 8, []
    for measured in all_measured:
        part, top = panel(measured, top, low, high)
        body += part
    note = "Median of the rounds, with a line from the least to the greatest; logarithmic. Less is better."
    body.append(f'<text x="16" y="{top + 8}" class="value">{note}</text>')
    style = (
        "text{font:13px sans-serif;fill:#222}.title{font-weight:bold;font-size:15px}.name{text-anchor:end}"
        ".axis{text-anchor:middle;fill:#777;font-size:11px}.grid{stroke:#ddd}.spread{stroke:#111;stroke-width:2}"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top + 24}" role="img" '
            'aria-label="Seconds for the same prompts, by set-up">',
            f"<style>{style}</style>",
            f'<rect width="{WIDTH}" height="{top + 24}" fill="#fff"/>',
            *body,
            "</svg>\n",
        ]
    )


def main():
    file = RESULTS / "bench.svg"
    drawn = draw()
    if "--check" in sys.argv[1:]:
        if file.read_text() != drawn:
            sys.exit(f"{file.name} is not what the raw data give: run tests/benches/chart.py")
        return
    file.write_text(drawn)


if __name__ == "__main__":
    main()
