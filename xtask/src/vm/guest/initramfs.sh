#!/bin/busybox sh
# First program of the guest: loads what the kernel needs to see the root disk, adds what this run brings, and goes
# there. The kernel makes variables of this script's environment from its command line.
/bin/busybox mount -t devtmpfs devtmpfs /dev
if [ "$flavour" = probe ]; then
    echo "icebox: the probe has come up"
    exec /bin/busybox poweroff -f
fi
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
    # What is built into the kernel has no file.
    [ ! -e /modules/$module.ko ] || /bin/busybox insmod /modules/$module.ko || echo "initramfs: cannot load $module"
done
# The disk appears while its driver is loaded; a guest without one is ended by the host's deadline.
until /bin/busybox mount -t ext4 /dev/vda /root; do /bin/busybox usleep 20000; done
/bin/busybox cp -a /icebox /root/
if [ "$flavour" = systemd ]; then
    units=/root/etc/systemd/system
    /bin/busybox mkdir -p $units/multi-user.target.wants
    /bin/busybox cp /icebox/icebox-job.service $units/
    /bin/busybox ln -sf ../icebox-job.service $units/multi-user.target.wants/
    program=/lib/systemd/systemd
else
    program=/icebox/init
fi
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root $program
