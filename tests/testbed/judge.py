#!/usr/bin/env python3
"""Judges what the coordinator wrote in the testbed, from its output alone."""

import json
import sys


def machines(path):
    """Prints the number of machines in the output of `tropa machines --json`."""
    with open(path, encoding="utf-8") as file:
        print(len(json.load(file)["machines"]))


def results(prompts, path):
    """Every prompt has exactly one result, none is empty, and more than one agent worked."""
    with open(prompts, encoding="utf-8") as file:
        expected = sum(1 for line in file if line.strip())
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    ids = [row["custom_id"] for row in rows]
    agents = {row["tropa"]["agent"] for row in rows}
    print(f"{len(rows)} results for {expected} prompts, from {len(agents)} agents")
    if len(rows) != expected or len(set(ids)) != expected or len(agents) < 2:
        sys.exit(1)


if __name__ == "__main__":
    {"machines": machines, "results": results}[sys.argv[1]](*sys.argv[2:])
