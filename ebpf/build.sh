#!/usr/bin/env bash
# Builds the kernel object and its digest of sources.
#   ebpf/build.sh          writes ebpf/loader/object/
#   ebpf/build.sh --check  fails when the committed object is not what the sources give
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
objects=$here/loader/object
record=$objects/SOURCES
names=(weir lookup trial)
# A fixed place: names that the compiler derives from paths end up in the object.
place=/tmp/weir-ebpf-build
# An address per checkout of the toolchain would, too.
rust=$(rustc --version | cut -d' ' -f2)

sources() {
  cd "$here"
  find abi/src abi/Cargo.toml programs/src programs/Cargo.toml programs/Cargo.lock -type f |
    LC_ALL=C sort | xargs sha256sum
}

build() {
  mkdir -p "$place"
  exec 9>"$place/lock"
  flock 9
  rm -rf "$place/src"
  mkdir -p "$place/src"
  cp -r "$here/abi" "$here/programs" "$place/src/"
  cd "$place/src/programs"
  # What is inlined is for the linker to say, which sees the whole program: with the choice of the
  # compiler (MIR) the verifier takes a minute instead of two seconds.
  local flags="-Zinline-mir=no -Cdebuginfo=2 -Clink-arg=--btf -Ctarget-cpu=v3"
  flags+=" --remap-path-prefix=$(rustc --print sysroot)=/rust"
  flags+=" --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
  # LLVM numbers types in .BTF by where they happen to be in memory. Some containers forbid setarch(8).
  local still=(env)
  setarch -R true 2>/dev/null && still=(setarch -R)
  # Whoever builds may have settings of his own for cargo; in the object they would be differences.
  unset CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_RUSTFLAGS RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER "${!CARGO_PROFILE_@}"
  CARGO_INCREMENTAL=0 RUSTC_BOOTSTRAP=1 RUSTFLAGS=$flags CARGO_TARGET_DIR=$place/target \
    "${still[@]}" cargo build --quiet --locked --release --bins --target bpfel-unknown-none -Z build-std=core
  for name in "${names[@]}"; do
    llvm-objcopy-19 --strip-debug "$place/target/bpfel-unknown-none/release/$name" "$1/$name.bpf.o"
  done
}

# Everything that the kernel runs, without the numbering of types.
without_types() {
  llvm-objcopy-19 --remove-section .BTF --remove-section .BTF.ext "$1" "$fresh/plain"
  sha256sum <"$fresh/plain"
}

if [ "${1:-}" = --check ]; then
  if ! diff <(sources) <(grep -v '^#' "$record") >/dev/null; then
    echo "ebpf: the committed object is stale: its sources have changed since. Run \`make ebpf\`."
    diff <(sources) <(grep -v '^#' "$record") || true
    exit 1
  fi
  if ! grep -q "^# rustc $rust\$" "$record"; then
    echo "ebpf: the object was built by another rustc ($(grep '^# rustc' "$record"), here $rust): only its sources were compared"
    exit 0
  fi
  "$here/toolchain.sh"
  fresh=$(mktemp -d)
  trap 'rm -rf "$fresh"' EXIT
  build "$fresh"
  how="byte for byte"
  for name in "${names[@]}"; do
    cmp -s "$fresh/$name.bpf.o" "$objects/$name.bpf.o" && continue
    if [ "$(without_types "$fresh/$name.bpf.o")" = "$(without_types "$objects/$name.bpf.o")" ]; then
      how="but for the numbering of types in .BTF"
    else
      echo "ebpf: the committed $name.bpf.o is not what its sources give. Run \`make ebpf\`."
      exit 1
    fi
  done
  echo "ebpf: the committed objects are what their sources give, $how"
else
  "$here/toolchain.sh"
  mkdir -p "$objects"
  build "$objects"
  { echo "# rustc $rust"; sources; } >"$record"
  echo "ebpf: built $(stat -c %s "$objects/weir.bpf.o") bytes"
fi
