#!/usr/bin/env bash
# Installs what building the kernel object needs beyond a Rust toolchain: the standard library's
# source, bpf-linker, and an objcopy that knows BPF. Users of weir never need this; CI does.
set -euo pipefail

linker_version=0.10.3
sysroot=$(rustc --print sysroot)
library=$sysroot/lib/rustlib/src/rust/library
rust=$(rustc --version | cut -d' ' -f2)

say() { echo "ebpf/toolchain: $*"; }

# The package of Debian's backports with the same version, where no toolchain component is to be had.
source_from_debian() {
  local work mirror
  work=$(mktemp -d)
  trap 'rm -rf "$work"' RETURN
  mirror=$(grep -hoE 'https?://[^ ]*/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -n 1 | tr -d ' ')
  [ -n "$mirror" ] || return 1
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
  printf 'Types: deb\nURIs: %s\nSuites: trixie-backports\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' "$mirror" >"$work/backports.sources"
  chmod -R a+rX "$work"
  local apt=(apt-get -q -o "Dir::Etc::sourcelist=$work/backports.sources" -o Dir::Etc::sourceparts=-
    -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
  "${apt[@]}" update >/dev/null
  (cd "$work" && "${apt[@]}" download "rust-src=$rust*" >/dev/null)
  dpkg -x "$work"/rust-src_*.deb "$work/unpacked"
  rm -rf "/usr/local/src/rustc-$rust"
  mkdir -p /usr/local/src
  mv "$work/unpacked/usr/src/rustc-$rust" "/usr/local/src/rustc-$rust"
  mkdir -p "$(dirname "$library")"
  ln -sfn "/usr/local/src/rustc-$rust/library" "$library"
}

if [ ! -f "$library/Cargo.lock" ]; then
  say "installing the standard library's source for Rust $rust"
  rustup component add rust-src >/dev/null 2>&1 || source_from_debian || {
    say "cannot install it: neither rustup nor Debian's backports have rust-src $rust"
    exit 1
  }
fi
if ! bpf-linker --version 2>/dev/null | grep -q " $linker_version$"; then
  say "installing bpf-linker $linker_version"
  cargo install --quiet --locked "bpf-linker@$linker_version"
fi
if ! command -v llvm-objcopy-19 >/dev/null; then
  say "installing llvm-19"
  apt-get -q update >/dev/null
  apt-get -q install -y --no-install-recommends llvm-19 >/dev/null
fi
