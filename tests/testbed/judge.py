#!/usr/bin/env python3
"""Judges what the coordinator wrote in the testbed, from its output alone."""

import collections
import json
import sys


def machines(path):
    """Prints the number of machines in the output of `tropa machines --json`."""
    with open(path, encoding="utf-8") as file:
        print(len(json.load(file)["machines"]))


def results(prompts, path):
    """Every prompt has exactly one result, in order and without an error, and both machines did some."""
    with open(prompts, encoding="utf-8") as file:
        expected = sum(1 for line in file if line.strip())
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    indices = [row["tropa"]["index"] for row in rows]
    good = sum(1 for row in rows if row.get("error") is None and row["text"])
    share = collections.Counter(row["tropa"]["machine"] for row in rows)
    print(f"{good} good of {len(rows)} results for {expected} prompts; by machine: {sorted(share.values())}")
    if indices != list(range(expected)) or good != expected or len(share) != 2:
        sys.exit(1)


if __name__ == "__main__":
    {"machines": machines, "results": results}[sys.argv[1]](*sys.argv[2:])
