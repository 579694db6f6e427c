#!/usr/bin/env bash
# Finds or builds `docker compose` (version 2), which Debian 12 does not have, and prints where it lies:
#
#   TROPA_COMPOSE_V2=/path/docker-compose     the plugin of the docker command
#
# so `eval "$(tests/testbed/compose_v2.sh --export)"` lets `tests/testbed/run --compose v2` use it, without installing
# it. Where `docker compose` works already, that one is taken and the variable is empty. Otherwise it is built from its
# published Go module, two minutes on two cores, once, and kept in
# ${TROPA_CI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tropa-ci}. Nothing is written into the checkout.
#
# Exit status: 0 it is there; 3 this machine cannot have it, the reason is on stderr; others: the build failed.
set -euo pipefail

version=2.40.3
cache=${TROPA_CI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tropa-ci}
mkdir -p "$cache"
# One build at a time; a second caller waits for the first and finds everything done.
exec 9>"$cache/compose.lock"
flock 9

impossible() { printf 'no docker compose v2: %s\n' "$*" >&2; exit 3; }

plugin=$cache/compose-$version/docker-compose
if docker compose version >/dev/null 2>&1; then
  plugin=
elif ! [ -x "$plugin" ]; then
  command -v go >/dev/null || impossible "the docker command has none, and there is no go to build it"
  work=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$work'" EXIT
  printf 'building docker compose %s, two minutes\n' "$version" >&2
  # `go install` refuses a module that excludes versions of others, so it is built where the download lies.
  module=github.com/docker/compose/v2
  (cd "$work" && go mod download "$module@v$version") >&2 || impossible "its Go module cannot be downloaded"
  source=$(go env GOMODCACHE)/$module@v$version
  (cd "$source" && CGO_ENABLED=0 nice go build -trimpath -ldflags "-s -w -X $module/internal.Version=v$version" \
    -o "$work/docker-compose" ./cmd) >&2
  mkdir -p "$(dirname "$plugin")"
  # Whole or not at all.
  mv "$work/docker-compose" "$plugin.part"
  mv "$plugin.part" "$plugin"
fi

if [ "${1:-}" = --export ]; then printf 'export '; fi
printf 'TROPA_COMPOSE_V2=%q\n' "$plugin"
