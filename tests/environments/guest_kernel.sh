#!/usr/bin/env bash
# Finds or downloads a Linux kernel that QEMU can start, and prints where it lies on the last line:
#
#   TROPA_GUEST_KERNEL=/path/KERNEL     a folder with boot/vmlinuz-* and lib/modules/, as the package has them
#
# so `eval "$(tests/environments/guest_kernel.sh --export)"` followed by `cargo test` runs the test with a guest;
# without the variable it prints `skipped: ...`. The kernel is Debian's for virtual machines: the package is
# downloaded and unpacked, not installed, 27 MB and 106 MiB, 5 seconds, once.
#
# Everything is kept in ${TROPA_CI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tropa-ci}. Nothing is written into the
# checkout.
#
# Exit status: 0 it is there; 3 this machine cannot have it, the reason is on stderr.
set -euo pipefail

cache=${TROPA_CI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tropa-ci}
mkdir -p "$cache"
exec 9>"$cache/guest-kernel.lock"
flock 9

impossible() { printf 'no kernel for a guest: %s\n' "$*" >&2; exit 3; }

kernel=$cache/guest-kernel-$(uname -m)
if ! [ -d "$kernel" ]; then
  command -v apt-get >/dev/null || impossible "it comes as a Debian package, and there is no apt-get"
  case $(dpkg --print-architecture) in
    amd64) family=linux-image-cloud-amd64 ;;
    *) impossible "the test starts guests of x86-64 only" ;;
  esac
  package=$(apt-cache depends "$family" 2>/dev/null | awk '/Depends: linux-image/ { print $2; exit }')
  [ -n "$package" ] || impossible "apt knows no $family (run apt-get update)"
  work=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$work'" EXIT
  # The download runs as another user where apt has one.
  chmod 755 "$work"
  (cd "$work" && apt-get download -qq "$package") >&2 || impossible "apt cannot download $package"
  dpkg -x "$work/$package"_*.deb "$work/x"
  # Whole or not at all.
  rm -rf "$kernel.part"
  mv "$work/x" "$kernel.part"
  mv "$kernel.part" "$kernel"
fi

if [ "${1:-}" = --export ]; then printf 'export '; fi
printf 'TROPA_GUEST_KERNEL=%q\n' "$kernel"
