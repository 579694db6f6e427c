#!/usr/bin/env bash
# Measures `tropa bench` on real Ollamas that are pinned to cores, and makes chart and figures of BENCHMARKS.md.
#
#   tests/benches/bench.sh [ROUNDS [PROMPTS [SET_UP]]]
#
# Default: 20 rounds of 8 prompts, all set-ups (shared, distinct, batching), each five to eight minutes on a quiet
# machine; batching takes 96 prompts and a fifth of the rounds. SET_UP `width` runs the bench of the measured width
# alone, with PROMPTS chunks a job (`bench.sh 5 200 width`), and writes nothing. Nobody else may use the machine meanwhile: one busy
# process makes two engines on two cores several times slower.
#
# Writes bench-SET_UP.json and bench.svg in tests/benches/results, and the figures of the page. Needs two cores and
# what tests/real_ollama/build.sh needs; exits with 3 and the reason where this machine cannot have that.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

found=$(tests/real_ollama/build.sh --export)
eval "$found"
cache=${TROPA_CI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tropa-ci}
python=$cache/venv/bin/python

# 66 million parameters keep a core busy; made again when the script that makes it changes.
export TROPA_BENCH_GGUF=$cache/bench.gguf
recipe=$(sha256sum <tests/real_ollama/model.py)
if [ ! -s "$TROPA_BENCH_GGUF" ] || [ "$(cat "$TROPA_BENCH_GGUF.recipe" 2>/dev/null)" != "$recipe" ]; then
  "$python" tests/real_ollama/model.py --blocks 16 --embedding 640 "$TROPA_BENCH_GGUF" >&2
  printf '%s\n' "$recipe" >"$TROPA_BENCH_GGUF.recipe"
fi
if [ "${3:-}" = width ]; then
  exec cargo bench --locked -p tropa-tests --bench real_width -- "${2:-200}" "${1:-5}"
fi
cargo bench --locked -p tropa-tests --bench tropa_bench -- "$PWD/tests/benches/results" "${1:-20}" "${2:-8}" ${3:+"$3"}
python3 -B tests/benches/chart.py
python3 -B tests/benches/table.py
