#!/usr/bin/env bash
# Finds or builds a real Ollama and a tiny model for it, and prints the path of the binary on the last line.
#
# The tests with a real Ollama read two variables:
#
#   TROPA_OLLAMA_BIN=/path/ollama       the binary; printed on the last line of this script's output
#   TROPA_TINY_GGUF=/path/tiny.gguf     the model; lies in the cache folder, printed on the line before
#
# so `eval "$(tests/real_ollama/build.sh --export)"` followed by `cargo test` runs them; without the
# variables they print `skipped: ...`. An `ollama` that is on PATH is taken as it is. Where there is none,
# one is built from its published Go module, which takes 5 to 10 minutes on two cores, once.
#
# Everything is kept in ${TROPA_CI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tropa-ci}; a second run takes
# less than two seconds. Nothing is written into the checkout.
#
# Exit status: 0 both are there; 3 this machine cannot have them, the reason is on stderr; others: a build failed.
set -euo pipefail

# The newest version that builds from the module alone: from 0.30 on it needs more than the module holds.
version=0.24.0
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${TROPA_CI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tropa-ci}
mkdir -p "$cache"
# One build at a time; a second caller waits for the first and finds everything done.
exec 9>"$cache/build.lock"
flock 9

say() { printf '%s\n' "$*" >&2; }
impossible() { say "no real Ollama: $*"; exit 3; }

# A virtual environment of our own: `pip` of the system may be absent or refuse to install.
python=$cache/venv/bin/python
need_python() {
  [ -x "$python" ] && return
  command -v python3 >/dev/null || impossible "the model is made by Python, and there is no python3"
  say "making a virtual environment in $cache/venv"
  rm -rf "$cache/venv.part"
  python3 -m venv "$cache/venv.part" >&2 || impossible "python3 -m venv failed (Debian: install python3-venv)"
  rm -rf "$cache/venv.part"
  python3 -m venv "$cache/venv" >&2
}

build_ollama() {
  command -v go >/dev/null || impossible "neither ollama nor go is on PATH"
  command -v g++ >/dev/null || impossible "its CPU engine needs a C++ compiler"
  local header include
  for header in nlohmann/json.hpp stb/stb_image.h; do
    printf '#include <%s>\n' "$header" | g++ -E -x c++ - >/dev/null 2>&1 ||
      impossible "header $header is missing (Debian: install nlohmann-json3-dev libstb-dev)"
  done
  need_python
  local work flags=-O2 feature
  work=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$work'" EXIT
  # The module leaves this header out; a Python package of the same name carries it.
  "$python" -m pip download -q --no-deps --no-binary :all: -d "$work" miniaudio >&2 ||
    impossible "the Python package miniaudio, which holds a header, cannot be downloaded"
  tar -xzf "$work"/miniaudio-*.tar.gz -C "$work"
  include=$(echo "$work"/miniaudio-*/)
  # Three times faster than without, where the processor has them.
  for feature in avx2 fma f16c; do
    grep -qw "$feature" /proc/cpuinfo 2>/dev/null && flags+=" -m$feature"
  done
  say "building Ollama $version, 5 to 10 minutes"
  CGO_ENABLED=1 CGO_CFLAGS="$flags" CGO_CXXFLAGS="$flags -I$include" GOBIN="$work/bin" \
    nice go install -ldflags "-X github.com/ollama/ollama/version.Version=$version" \
    "github.com/ollama/ollama@v$version" >&2
  mkdir -p "$cache/ollama-$version"
  mv "$work/bin/ollama" "$cache/ollama-$version/ollama"
}

ollama=$(command -v ollama || true)
if [ -z "$ollama" ]; then
  ollama=$cache/ollama-$version/ollama
  [ -x "$ollama" ] || build_ollama
fi

# Made again when the script that makes it changes.
model=$cache/tiny.gguf
recipe=$(sha256sum <"$here/model.py")
if [ ! -s "$model" ] || [ "$(cat "$model.recipe" 2>/dev/null)" != "$recipe" ]; then
  need_python
  "$python" -c 'import gguf, numpy' 2>/dev/null || "$python" -m pip install -q gguf numpy >&2 ||
    impossible "the Python packages gguf and numpy cannot be installed"
  "$python" "$here/model.py" "$model" >&2
  printf '%s\n' "$recipe" >"$model.recipe"
fi

if [ "${1:-}" = --export ]; then
  printf 'export TROPA_TINY_GGUF=%q\nexport TROPA_OLLAMA_BIN=%q\n' "$model" "$ollama"
else
  printf '%s\n%s\n' "$model" "$ollama"
fi
