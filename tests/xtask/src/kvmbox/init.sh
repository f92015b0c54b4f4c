#!/bin/busybox sh
# The first program in a box: loads the drivers, mounts the host's root file system over 9p with fresh
# kernel file systems on it, and hands over to the agent, which lies on the host as BOX_AGENT (the
# kernel puts what it does not know of its command line into this environment).
# Output goes to the kernel log's console.
export PATH=/bin
busybox mkdir -p /proc /root
busybox mount -t proc proc /proc

give_up() {
    echo "kvmbox: $1"
    busybox poweroff -f
}

while read -r module; do
    busybox insmod "/modules/$module.ko" || echo "kvmbox: $module did not load"
done </modules/order

busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose host /root ||
    give_up "the host's root could not be mounted"
busybox mount -t devtmpfs dev /root/dev
busybox mkdir -p /root/dev/pts /root/dev/shm
busybox mount -t devpts -o ptmxmode=666 devpts /root/dev/pts
busybox mount -t tmpfs -o mode=1777 shm /root/dev/shm
busybox mount -t sysfs sys /root/sys
# Sockets and locks do not work over 9p.
busybox mount -t tmpfs -o mode=755 run /root/run
busybox mkdir -p /root/run/lock /root/run/user/0 /root/run/box/upper /root/run/box/work
busybox chmod 1777 /root/run/lock
if [ "$BOX_TMP" = overlay ]; then
    busybox mount -t overlay -o lowerdir=/root/tmp,upperdir=/root/run/box/upper,workdir=/root/run/box/work tmp /root/tmp &&
        busybox chmod 1777 /root/tmp || give_up "there is no /tmp"
fi
busybox ip link set lo up
busybox ip address add 127.0.0.1/8 dev lo 2>/dev/null
busybox mount --move /proc /root/proc
exec busybox switch_root /root "$BOX_AGENT" kvmbox-agent
