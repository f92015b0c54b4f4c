#!/bin/busybox sh
# The first program of a Linux test guest. It loads the drivers, says what it sees, and does what the
# kernel's command line asks for in `skiff.do=`: a list of the functions below that start with `do_`.
#
# Every line for the test to read starts with "skiff-guest: " and is `word key=value…`. The guest is
# emulated more often than not, where a new process costs as much as a thousand shell words: what the
# shell can do by itself, it does.
export PATH=/bin HOME=/ TERM=${TERM:-linux}
/bin/busybox mount -t proc proc /proc

say() {
    echo "skiff-guest: $*"
}

# The first word of a file of the kernel's, which need not end in a newline.
first() {
    word=
    read -r word _ <"$1"
    echo "$word"
}

# Loads a driver and what it needs, once. Fails if there is no such module: the kernel may have it built in.
loaded=" "
load() {
    [ -e "/modules/$1.order" ] || return 1
    while read -r module; do
        case "$loaded" in *" $module "*) continue ;; esac
        loaded="$loaded$module "
        /bin/busybox insmod "/modules/$module.ko" || say "problem module=$module"
    done <"/modules/$1.order"
}

load_drivers() {
    for vendor in /sys/bus/pci/devices/*/vendor; do
        [ -e "$vendor" ] || continue
        if read -r id <"$vendor" && [ "$id" = 0x1af4 ]; then load virtio_pci; break; fi
    done
    [ -e /sys/bus/acpi/devices/LNRO0005:00 ] && load virtio_mmio
    # 1 is net, 2 block, 3 console, 4 entropy, 5 balloon, 19 vsock, 26 file system.
    for kind in /sys/bus/virtio/devices/*/device; do
        [ -e "$kind" ] || continue
        read -r id <"$kind"
        case "$id" in
        0x0002) load virtio_blk ;;
        0x0003) load virtio_console ;;
        0x0004) load virtio_rng ;;
        # These are there only in guests that have `extra.sh`.
        0x0001) load virtio_net ;;
        0x0005) load virtio_balloon ;;
        0x0013) load vmw_vsock_virtio_transport ;;
        0x001a) load virtiofs ;;
        esac
    done
    # Linux 5.11 split the driver in two; the older one does all by itself.
    if [ -e /sys/bus/acpi/devices/QEMU0001:00 ]; then load pvpanic_mmio || load pvpanic; fi
}

# Waits for a file of the kernel's: devices come up behind their drivers' back.
wait_for() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        [ -e "$1" ] && return 0
        /bin/busybox sleep 0.2
    done
    say "problem missing=$1"
    return 1
}

hash_of() {
    set -- $(/bin/busybox dd if="$1" bs=1M count="$2" 2>/dev/null | /bin/busybox sha256sum)
    echo "$1"
}

# Writes 4 MiB of noise to the first disk. Its hash is taken before, so the host can judge the disk.
do_write() {
    wait_for /dev/vda || return
    /bin/busybox dd if=/dev/urandom of=/noise bs=1M count=4 2>/dev/null
    say "write sha256=$(hash_of /noise 4)"
    /bin/busybox dd if=/noise of=/dev/vda bs=1M conv=fsync 2>/dev/null || say "problem write=failed"
    /bin/busybox rm /noise
}

# Reads back what an earlier boot wrote.
do_check() {
    wait_for /dev/vda && say "check sha256=$(hash_of /dev/vda 4) serial=$(first /sys/block/vda/serial)"
}

# The second disk is read-only: it reads, and does not let itself be written.
do_readonly() {
    wait_for /dev/vdb || return
    written=yes
    /bin/busybox dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=fsync 2>/dev/null || written=no
    say "readonly flag=$(first /sys/block/vdb/ro) written=$written sha256=$(hash_of /dev/vdb 1)"
}

do_rng() {
    wait_for /dev/hwrng || return
    say "rng source=$(first /sys/class/misc/hw_random/rng_current)" \
        "bytes=$(/bin/busybox dd if=/dev/hwrng bs=16 count=1 2>/dev/null | /bin/busybox hexdump -ve '1/1 "%02x"')"
}

do_console() {
    wait_for /dev/hvc0 && echo "skiff-guest: hello from hvc0" >/dev/hvc0
}

# Reboots, the first time round. A mark on the first disk, behind what do_write writes, remembers it.
MARK=skiff-was-here
marked() {
    [ -e /dev/vda ] && [ "$(/bin/busybox dd if=/dev/vda bs=1 skip=8388608 count=${#MARK} 2>/dev/null)" = "$MARK" ]
}
do_reboot_once() {
    wait_for /dev/vda || return
    echo -n "$MARK" | /bin/busybox dd of=/dev/vda bs=1 seek=8388608 conv=fsync,notrunc 2>/dev/null
    do_reboot
}

do_reboot() {
    say reboot
    /bin/busybox reboot -f
}

do_poweroff() {
    say poweroff
    /bin/busybox poweroff -f
}

do_panic() {
    say panic
    echo c >/proc/sysrq-trigger
}

# Waits for the host to do something.
do_idle() {
    say idle
    while :; do /bin/busybox sleep 3600; done
}

show() {
    echo
    echo "# $*"
    "$@"
}

pci_devices() {
    for device in /sys/bus/pci/devices/*; do
        echo "${device##*/} vendor $(first "$device/vendor") device $(first "$device/device") class $(first "$device/class")"
    done
}

do_demo() {
    /bin/busybox --install -s /bin
    show uname -a
    show nproc
    show free -m
    show pci_devices
    show ls /sys/bus/virtio/drivers
    show cat /proc/partitions
    show cat /proc/interrupts
    echo
    echo "# dmesg | grep -i -E 'hypervisor|kvm|clocksource: Switched|virtio|RTC'"
    dmesg | grep -i -E 'hypervisor|kvm|clocksource: Switched|virtio|RTC'
    show cat /proc/uptime
    do_poweroff
}

do_shell() {
    /bin/busybox --install -s /bin
    echo
    echo "This is $(first /proc/sys/kernel/osrelease) in skiff. \`poweroff -f\` ends it."
    while :; do
        PS1='guest:\w# ' setsid cttyhack sh -i
        echo "(the shell has ended; here is another. \`poweroff -f\` ends the machine)"
    done
}

say "init uptime=$(first /proc/uptime)"
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t sysfs sys /sys
actions=poweroff
for word in $(/bin/busybox cat /proc/cmdline); do
    case "$word" in skiff.do=*) actions=${word#skiff.do=} ;; esac
done
[ ! -e /extra.sh ] || . /extra.sh
load_drivers
read -r _ memory _ </proc/meminfo
say "ready cpus=$(first /sys/devices/system/cpu/online) memory=${memory}K kernel=$(first /proc/sys/kernel/osrelease)"
case "$actions" in
*reboot-once*)
    if wait_for /dev/vda && marked; then
        say "rebooted"
        actions=${actions#*reboot-once,}
    fi
    ;;
esac
IFS=,
for action in $actions; do
    unset IFS
    case "$action" in
    reboot-once) do_reboot_once ;;
    *) "do_$action" ;;
    esac
done
do_poweroff
