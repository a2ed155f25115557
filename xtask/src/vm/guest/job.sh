#!/bin/sh
# Runs what the host brought on the disk "carry", and tells the host how it ended. Both flavours use it.
port=/dev/virtio-ports
mkdir -p /carry /data /out
modprobe -a virtio_console loop overlay
# Without udev (or before it is ready), the names of the ports are not made.
if [ ! -e $port/icebox.control ]; then
    mkdir -p $port
    for sys in /sys/class/virtio-ports/*; do
        read -r name <"$sys/name" && ln -sf "/dev/${sys##*/}" "$port/$name"
    done
fi
exec 3<>$port/icebox.control
tell() { echo "$1" >&3; }
fail() { echo "guest: $1"; tell "broken $1"; exit 1; }
mount -t ext4 LABEL=carry /carry || fail "the disk carry can't be mounted"
mount -t ext4 LABEL=data /data || fail "the disk data can't be mounted"
if [ -s /carry/images ]; then
    read -r dir </carry/images
    mkdir -p "$dir"
    mount -t ext4 LABEL=images "$dir" || fail "the disk images can't be mounted"
fi
# What was brought is seen where it was on the host.
while read -r path; do
    if [ -d "/carry/tree$path" ]; then
        mkdir -p "$path"
    else
        mkdir -p "${path%/*}"
        [ -e "$path" ] || : >"$path"
    fi
    mount --bind "/carry/tree$path" "$path" || fail "$path can't be bound"
done </carry/paths
tell ready
# The host's one word cuts the power: nothing is flushed, nothing is unmounted.
(read -r word <&3 && [ "$word" = reset ] && echo b >/proc/sysrq-trigger) &
if [ -e /carry/interactive ]; then
    read -r TERM rows columns </carry/interactive
    export TERM
    # A terminal forgets its size when it is closed.
    setsid -c /bin/sh -c "${columns:+stty rows $rows cols $columns;} . /carry/command" <>/dev/hvc0 >&0 2>&1
else
    # A session of its own, as every process of a usual machine has one.
    setsid -w /bin/sh /carry/command </dev/null >$port/icebox.output 2>&1
fi
status=$?
[ -z "$(ls -A /out)" ] || tar -C /out -cf $port/icebox.files .
sync
tell "exit $status"
