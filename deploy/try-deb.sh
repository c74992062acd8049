#!/usr/bin/env bash
# Installs a .deb into a directory of its own with dpkg, tries what it brought, and removes it again.
#   deploy/try-deb.sh FILE.deb COMMIT
set -euo pipefail

deb=$1 commit=$2
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
failed() { echo "weir: $deb: $1" >&2; exit 1; }
mkdir -p "$root/var/lib/dpkg/info" "$root/var/lib/dpkg/updates"
touch "$root/var/lib/dpkg/status"
in_root() { dpkg --root="$root" --path-include="/usr/share/*" --force-script-chrootless --force-not-root "$@" >"$root/dpkg.log" 2>&1 || failed "$(cat "$root/dpkg.log")"; }

in_root --install "$deb"
weir=$root/usr/bin/weir
[ -x "$weir" ] || failed "brings no /usr/bin/weir"
# ldd fails on what it cannot look into.
{ ldd "$weir" 2>&1 || true; } | grep -qE 'statically linked|not a dynamic executable' || failed "its program needs libraries"
# Without anything else of this machine: no library, no configuration.
chroot "$root" /usr/bin/weir version | grep -qF "commit $commit," || failed "$("$weir" version) is not of $commit"
chroot "$root" /usr/bin/weir services 2>"$root/said" && failed "an agent answers in an empty directory"
grep -q 'cannot reach the agent at /run/weir/weir.sock' "$root/said" || failed "$(cat "$root/said")"

unit=$root/usr/lib/systemd/system/weir.service
program=$(sed -n 's/^ExecStart=\([^ ]*\).*/\1/p' "$unit")
[ -x "$root$program" ] || failed "its unit starts $program, which it does not bring"
for command in '' -agent -status -drain-task; do
  [ -s "$root/usr/share/man/man1/weir$command.1.gz" ] || failed "brings no man page weir$command"
done
bash -c 'source "$1" && complete -p weir' - "$root/usr/share/bash-completion/completions/weir" >/dev/null ||
  failed "its completion cannot be loaded by bash"
for file in zsh/vendor-completions/_weir fish/vendor_completions.d/weir.fish doc/weir/copyright; do
  [ -s "$root/usr/share/$file" ] || failed "brings no /usr/share/$file"
done

in_root --purge weir
left=$(find "$root/usr" "$root/etc" -type f 2>/dev/null || true)
[ -z "$left" ] || failed "leaves behind $left"
echo "$(basename "$deb"): installed, tried, removed"
