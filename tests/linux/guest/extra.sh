# What guests of the network tests can do besides: sourced by init.sh. Values come from the kernel's command line, as
# `skiff.<name>=`.

param() {
    for word in $(/bin/busybox cat /proc/cmdline); do
        case "$word" in "skiff.$1="*) echo "${word#*=}" ;; esac
    done
}

# eth0 as `skiff.ip` says: an address, or `dhcp`.
do_net() {
    /bin/busybox --install -s /bin
    # iperf3 keeps what it sends in a file.
    mkdir -p /tmp
    ip link set lo up
    wait_for /sys/class/net/eth0 || return
    ip link set eth0 up
    ip=$(param ip)
    if [ "$ip" = dhcp ]; then
        echo 'case "$1" in bound) ip address add "$ip/$mask" dev eth0; ip route add default via "$router";; esac' >/dhcp.sh
        chmod 755 /dhcp.sh
        echo '#!/bin/sh' | cat - /dhcp.sh >/dhcp && chmod 755 /dhcp
        udhcpc -i eth0 -s /dhcp -t 10 -n -q >/dev/null 2>&1 || say "problem dhcp=failed"
    else
        ip address add "$ip/24" dev eth0
    fi
    say "net mac=$(first /sys/class/net/eth0/address) mtu=$(first /sys/class/net/eth0/mtu)" \
        "ip=$(ip -4 -o address show dev eth0 | awk '{print $4}') queues=$(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)" \
        "gateway=$(ip route | awk '$1 == "default" {print $3}')"
}

# A file by HTTP, iperf3 and UDP, for others.
do_serve() {
    mkdir -p /www
    dd if=/dev/urandom of=/www/file bs=1M count=4 2>/dev/null
    httpd -p 8000 -h /www
    iperf3 -s -D >/dev/null
    guest-tool udp-echo &
    say "serve sha256=$(hash_of /www/file 4)"
}

do_ping() {
    tries=0
    while ! ping -c 1 -W 1 "$(param peer)" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 60 ] || { say "problem ping=none"; return; }
        sleep 1
    done
    say "ping tries=$tries"
}

# skiff.url
do_fetch() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        timeout 30 wget -q -O /fetched "$(param url)" 2>/wget && break
        sleep 1
    done
    say "fetch sha256=$(hash_of /fetched 64) bytes=$(stat -c %s /fetched) said=$(tail -n 1 /wget | tr ' ' _)"
}

# Both ways, three seconds each.
do_iperf() {
    for way in "" -R; do
        iperf3 -c "$(param peer)" -t 3 -f m $way >/iperf 2>&1 || say "problem iperf3=$(tail -n 1 /iperf | tr ' ' _)"
        say "iperf way=${way:-forward} mbits=$(awk '/receiver/ {print int($7)}' /iperf)"
    done
}

# For as long as eth0 has a carrier.
do_carrier() {
    while [ "$(cat /sys/class/net/eth0/carrier 2>/dev/null)" = 1 ]; do sleep 0.2; done
    say "carrier gone=yes"
}

# The agent, as often as it ends.
do_agent() {
    /bin/busybox --install -s /bin
    mkdir -p /tmp /run /root /etc /dev/pts
    mount -t devpts devpts /dev/pts
    echo 'root:x:0:0::/root:/bin/sh' >/etc/passwd
    while :; do
        skiff-agent
        say "agent ended=$?"
        sleep 1
    done &
}

do_vsock_serve() {
    guest-tool serve &
    sleep 1
}

# skiff.port: hosts' echo; the next one: their sink.
do_vsock_call() {
    port=$(param port)
    guest-tool call-nobody 9999
    guest-tool call-many "$port" 100
    guest-tool call-send $((port + 1)) "$(param mib)"
}

# Touches skiff.touch MiB of memory, and keeps none of it.
do_touch() {
    /bin/busybox --install -s /bin
    mkdir -p /touched
    mount -t tmpfs -o size=90% touched /touched
    dd if=/dev/zero bs=1M count="$(param touch)" 2>/dev/null | tr '\000' x >/touched/file
    say "touch bytes=$(stat -c %s /touched/file)"
    rm /touched/file
    echo 3 >/proc/sys/vm/drop_caches
    say "free"
}

# The power button ends the machine.
do_button() {
    /bin/busybox --install -s /bin
    load button
    load evdev
    mkdir -p /etc/acpi/PWRF /var/run
    printf '#!/bin/sh\necho skiff-guest: button >/dev/ttyS0\npoweroff -f\n' >/etc/acpi/PWRF/00000080
    chmod 755 /etc/acpi/PWRF/00000080
    acpid -d >/dev/null 2>&1 &
    say "button ready"
}

# Writes to the first disk until it fails.
do_fill() {
    wait_for /dev/vda || return
    dd if=/dev/zero of=/dev/vda bs=1M conv=fsync 2>/dev/null && say "fill failed=no" || say "fill failed=yes"
}

# Waits until the first disk has skiff.sectors sectors, and writes the last of them.
do_grown() {
    for _ in $(seq 300); do
        [ "$(cat /sys/block/vda/size)" != "$(param sectors)" ] || break
        sleep 0.1
    done
    last=$(($(cat /sys/block/vda/size) - 1))
    echo -n skiff-was-here | dd of=/dev/vda bs=512 seek=$last conv=fsync,notrunc 2>/dev/null
    say "grown sectors=$(cat /sys/block/vda/size)"
}

# A database, a clock and a job of many processes, each of which checks itself, on the first disk's ext4.
do_live() {
    /bin/busybox --install -s /bin
    wait_for /dev/vda || return
    # ext4 asks for it by its algorithm's name, which nobody here resolves.
    load crc32c_generic
    load ext4
    mkdir -p /data
    mount -t ext4 /dev/vda /data || { say "problem mount=failed"; return; }
    mkdir /data/tree
    for n in $(seq 24); do dd if=/dev/urandom of="/data/tree/$n" bs=16k count=$((n % 5 + 1)) 2>/dev/null; done
    (cd /data/tree && sha256sum * >/sums)
    job &
    guest-tool live /data &
    say "live"
}

job() {
    mkdir /data/copies.0 /data/copies.1
    round=0
    while :; do
        round=$((round + 1))
        copies=/data/copies.$((round % 2))
        tar -c -C /data -f - tree | tar -x -C $copies -f -
        (cd $copies/tree && sha256sum -c /sums >/job.out 2>&1) || say "problem job=$round file=$(grep -v OK /job.out | head -n 1)"
        rm -r $copies/tree
        say "job round=$round"
    done
}
