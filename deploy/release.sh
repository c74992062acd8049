#!/usr/bin/env bash
# Makes what a release consists of: one static program for any Linux of this architecture, and a .deb
# with it, its systemd unit, man pages and completions; then installs the .deb into a directory and tries it.
#   deploy/release.sh OUT
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" -ne 0 ]; then
  echo "weir: the package is tried in a chroot, which needs root; run \`sudo make release\`" >&2
  exit 1
fi
out=$1
machine=$(uname -m)
triple=$machine-unknown-linux-musl
target=${CARGO_TARGET_DIR:-$PWD/target}
# For cargo-deb, which takes the same.
export CARGO_TARGET_DIR=$target
export WEIR_COMMIT=${WEIR_COMMIT:-$(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)}

rustup target list --installed | grep -qx "$triple" || rustup target add "$triple"
command -v cargo-deb >/dev/null || cargo install --quiet --locked cargo-deb
cargo build --quiet --release --target "$triple" -p weir

built=$target/$triple/release
package=$built/package
rm -rf "$package"
mkdir -p "$package/completions" "$out"
strip -o "$package/weir" "$built/weir"
"$built/weir" man --dir "$package/man" >/dev/null
gzip -9n "$package"/man/*
for shell in bash zsh fish; do
  "$built/weir" completion "$shell" >"$package/completions/weir.$shell"
done
sed 's,/usr/local/bin/,/usr/bin/,' deploy/weir.service | sed '1,2d' >"$package/weir.service"

version=$("$built/weir" version -o json | sed -n 's/.*"version": "\(.*\)".*/\1/p')
name=weir-$version-linux-$machine
cp "$package/weir" "$out/$name"
cargo deb --quiet --no-build --no-strip --target "$triple" --package weir --output "$out/weir-$version-linux-$machine.deb"
deploy/try-deb.sh "$out/$name.deb" "$WEIR_COMMIT"
(cd "$out" && sha256sum "$name" "$name.deb" >"$name.sha256")
ls -l "$out/$name" "$out/$name.deb" "$out/$name.sha256"
