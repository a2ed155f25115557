#!/bin/sh
# Installs Icebox as a service of systemd, or replaces an older one; boxes go on meanwhile. Needs root.
set -eu

usage() {
    cat <<'TEXT'
usage: dist/install.sh [--from DIR] [--prefix DIR] [--destdir DIR]
       dist/install.sh --uninstall [--prefix DIR]

  --from DIR     the built binaries [default: target/icebox/bin, where `cargo xtask build` puts them]
  --prefix DIR   below which bin/ and lib/systemd/system/ are [default: /usr/local]
  --destdir DIR  put everything below DIR, for making a package; systemd is not told
  --uninstall    stop everything, boxes too, and remove what was installed; data and settings stay
TEXT
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
from=$here/../target/icebox/bin
prefix=/usr/local
destdir=
uninstall=
while [ $# -gt 0 ]; do
    case $1 in
        --from) from=$2; shift 2 ;;
        --prefix) prefix=$2; shift 2 ;;
        --destdir) destdir=$2; shift 2 ;;
        --uninstall) uninstall=yes; shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done

# All boxes have ended, so the firewall is no longer needed. Forwarding is turned off before the table is removed, since the
# table keeps other machines from using it.
remove_firewall() {
    if ! command -v nft >/dev/null; then
        echo "The nftables table inet icebox stays until the next boot: there is no nft to remove it."
        return
    fi
    nft list table inet icebox >/dev/null 2>&1 || return 0
    for interface in $(nft list set inet icebox opened | sed -n '/elements/,/}/p' | grep -o '"[^"]*"' | tr -d '"'); do
        forwarding=/proc/sys/net/ipv4/conf/$interface/forwarding
        [ ! -e "$forwarding" ] || echo 0 >"$forwarding"
    done
    nft delete table inet icebox
}

programs="icebox-init icebox-launch icerun icebox iceboxd"
units="icebox-boxes.service iceboxd.service"
bin=$destdir$prefix/bin
doc=$destdir$prefix/share/doc/icebox
etc=$destdir/etc/icebox
# Where systemd looks.
case $prefix in
    /usr | /usr/local) unit_dir=$destdir$prefix/lib/systemd/system ;;
    *) unit_dir=$destdir/etc/systemd/system ;;
esac

if [ -n "$uninstall" ]; then
    if [ -z "$destdir" ]; then
        systemctl disable --now iceboxd.service
        systemctl stop icebox-boxes.service
        remove_firewall
    fi
    for unit in $units; do rm -f "$unit_dir/$unit"; done
    for program in $programs; do rm -f "$bin/$program"; done
    rm -rf "$doc"
    [ -n "$destdir" ] || systemctl daemon-reload
    echo "Icebox is removed. What is left: /etc/icebox (settings) and /var/lib/icebox (boxes, images, bills)."
    exit 0
fi

for program in $programs; do
    [ -x "$from/$program" ] || { echo "install.sh: there is no $from/$program; run cargo xtask build" >&2; exit 1; }
done

# The rename puts the whole file in place at once: a process that runs the old file keeps it.
put() { # MODE FROM TO
    install -D -m "$1" "$2" "$3.new"
    mv -f "$3.new" "$3"
}

for program in $programs; do put 0755 "$from/$program" "$bin/$program"; done
for unit in $units; do
    sed "s|/usr/local/|$prefix/|" "$here/$unit" | put 0644 /dev/stdin "$unit_dir/$unit"
done
[ ! -e "$here/../docs/operating.md" ] || put 0644 "$here/../docs/operating.md" "$doc/operating.md"
[ -e "$etc/iceboxd.toml" ] || put 0644 "$here/iceboxd.toml" "$etc/iceboxd.toml"
[ -z "$destdir" ] || exit 0

systemctl daemon-reload
if systemctl --quiet is-active iceboxd.service; then
    # Not later: the daemon that runs speaks to the launcher that is on disk.
    systemctl restart iceboxd.service
    echo "Icebox is replaced and restarted; boxes went on."
else
    echo "Icebox is installed. Next: iceboxd image (once), then systemctl enable --now iceboxd"
fi
