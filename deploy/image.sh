#!/usr/bin/env bash
# Makes an image archive for `docker load` out of one program and the libraries it needs, without a
# daemon and without a base image. The same program gives the same image, on every node.
#   deploy/image.sh OUT.tar NAME:TAG CONFIG PROGRAM
# CONFIG is the "config" object of the OCI image specification, as JSON.
set -euo pipefail

out=$1 tag=$2 config=$3 program=$4

# Nothing to do when the archive is newer than what it is made of.
if [ "$out" -nt "$program" ] && [ "$out" -nt "$0" ]; then exit 0; fi

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
root=$stage/root
mkdir -p "$root" "$stage/image"

strip -o "$root/$(basename "$program")" "$program"
# Absolute paths in what ldd prints: the libraries, and the loader that the program names.
for library in $({ ldd "$program" || true; } | grep -o '/[^ ]*'); do
  install -D -m 755 "$library" "$root/$library"
done

layer=$stage/image/layer.tar
tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$root" -cf "$layer" .
digest=$(sha256sum "$layer" | cut -d' ' -f1)
case $(uname -m) in
  x86_64) architecture=amd64 ;;
  aarch64) architecture=arm64 ;;
  *) architecture=$(uname -m) ;;
esac
printf '{"architecture":"%s","os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
  "$architecture" "$config" "$digest" >"$stage/image/config.json"
printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$tag" >"$stage/image/manifest.json"

mkdir -p "$(dirname "$out")"
tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$stage/image" -cf "$stage/out" .
# Renamed, so that nobody who runs at the same time reads half of it.
mv "$stage/out" "$out.$$"
mv "$out.$$" "$out"
