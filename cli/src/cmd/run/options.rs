//! The flags of `skiff run`. `--config`, `--from`, `--keep` and those of a command aside, each is also a key of the file.

use std::ffi::OsStr;

use anyhow::Result;
use vmm::spec::{DiskSpec, VsockSpec};

use super::asked::{Asked, absolute, absolute_stream};
use super::seed;
use super::template::Template;
use super::volume;
use crate::cmd::exec;
use crate::flags::{Example, Flag, Takes, utf8};
use crate::store::names;

/// Streams as every help text names them.
const STREAM: &str = "stdio|file=PATH|null";

/// All flags, in the order of the help.
pub const FLAGS: &[Flag<Asked>] = &[
    NAME,
    DETACH,
    RM,
    ENTRYPOINT,
    FROM,
    KEEP,
    exec::interactive(),
    exec::tty(),
    exec::user(),
    exec::workdir(),
    exec::env(),
    KERNEL,
    INITRD,
    CMDLINE,
    CPUS,
    MEMORY,
    DISK,
    NET,
    PUBLISH,
    volume::VOLUME,
    volume::FS,
    VSOCK,
    SERIAL,
    CONSOLE,
    BALLOON,
    TRANSPORT,
    CPU_TEMPLATE,
    seed::USER_DATA,
    seed::META_DATA,
    seed::NETWORK_CONFIG,
    seed::SSH_KEY,
    CONFIG,
    DRY_RUN,
    VERBOSE,
    LOG_FILE,
];

const KERNEL: Flag<Asked> = Flag {
    name: "kernel",
    short: None,
    takes: Takes::File("FILE"),
    help: "The guest's kernel: a bzImage or an uncompressed ELF (vmlinux, PVH)",
    long: "The kernels of Debian and other distributions (/boot/vmlinuz-*) work as they are. Required, here or in \
           the file, for a VM that is of no image.",
    example: Example {
        args: &["--kernel", "/boot/vmlinuz-6.1.0-28-cloud-amd64"],
        toml: "kernel = \"/boot/vmlinuz-6.1.0-28-cloud-amd64\"",
    },
    apply: |asked, value| {
        asked.kernel = Some(absolute(value)?);
        Ok(())
    },
};

const INITRD: Flag<Asked> = Flag {
    name: "initrd",
    short: None,
    takes: Takes::File("FILE"),
    help: "The guest's initial RAM disk",
    long: "It is handed to the kernel as it is, compressed or not.",
    example: Example { args: &["--initrd", "/boot/initrd.img"], toml: "initrd = \"/boot/initrd.img\"" },
    apply: |asked, value| {
        asked.initrd = Some(absolute(value)?);
        Ok(())
    },
};

const CMDLINE: Flag<Asked> = Flag {
    name: "cmdline",
    short: None,
    takes: Takes::Text("TEXT"),
    help: "The kernel's command line [default: console=ttyS0, or console=hvc0 with --console stdio]",
    long: "It replaces the default as a whole: name the kernel's console in it, or the guest says nothing that \
           you can see. At most 2047 bytes.",
    example: Example {
        args: &["--cmdline", "console=ttyS0 root=/dev/vda1 ro"],
        toml: "cmdline = \"console=ttyS0 root=/dev/vda1 ro\"",
    },
    apply: |asked, value| {
        asked.cmdline = Some(utf8(value)?.to_owned());
        Ok(())
    },
};

const CPUS: Flag<Asked> = Flag {
    name: "cpus",
    short: None,
    takes: Takes::Text("N"),
    help: "How many vCPUs, 1 to 64 [default: 1]",
    long: "Each is a thread of this program. More than the host has processors works, and is slow.",
    example: Example { args: &["--cpus", "4"], toml: "cpus = 4" },
    apply: |asked, value| {
        let text = utf8(value)?;
        let bad = |_| anyhow::anyhow!("'{text}' is not a number of vCPUs: write one from 1 to 64");
        asked.cpus = Some(text.parse().map_err(bad)?);
        Ok(())
    },
};

const MEMORY: Flag<Asked> = Flag {
    name: "memory",
    short: Some('m'),
    takes: Takes::Text("SIZE[,KEY=VALUE]…"),
    help: "How much memory: a number with M or G, at least 64M [default: 512M; 1G for an image]",
    long: "Whole MiB. The host gives memory to the guest as the guest touches it. Keys after the size:
  hugepages=on        of the host's reserved huge pages of 2 MiB, all taken at the start; see
                      /proc/sys/vm/nr_hugepages
  overcommit=on       it may be more than the host has, which is refused otherwise",
    example: Example { args: &["--memory", "2G,hugepages=on"], toml: "memory = \"2G,hugepages=on\"" },
    apply: |asked, value| {
        asked.memory = Some(utf8(value)?.parse()?);
        Ok(())
    },
};

const DISK: Flag<Asked> = Flag {
    name: "disk",
    short: None,
    takes: Takes::Texts("path=FILE[,KEY=VALUE]…"),
    help: "A virtio disk: a raw or qcow2 file or a block device; repeat for more (vda, vdb, …)",
    long: "Keys:
  path=FILE           the file or block device; a comma in its name is doubled
  readonly=on         the guest cannot write it, and other VMs may read it too
  layers=on|off       on: never write the file; what the guest writes goes to qcow2 layers above it,
                      which snapshots need. off: write the file in place. By default on for a VM
                      that stays, off for a throw-away
  size=SIZE           what the guest sees of a disk with layers, such as 20G: at least what the file has
  direct=on           bypass the host's page cache (O_DIRECT)
  serial=TEXT         the serial number the guest sees, at most 20 bytes
  queues=N            request queues, 1 to 16; by default one per vCPU, up to 4
  io=auto|uring|plain io_uring, plain calls, or whichever the host allows
  bandwidth=SIZE      bytes a second, such as 100M; bandwidth-burst=SIZE at once after a pause
  ops=N               requests a second; ops-burst=N at once after a pause
  burst=SIZE          short for bandwidth-burst, or for ops-burst where only ops are limited
A disk that another VM writes is refused. Disks of the file come first, then those of the flags.",
    example: Example {
        args: &[
            "--disk",
            "path=/srv/root.img",
            "--disk",
            "path=/srv/data.img,readonly=on,direct=on,serial=D1,queues=2,io=plain,bandwidth=100M,burst=200M,ops=1000,ops-burst=5000",
        ],
        toml: "disk = [\n  \"path=/srv/root.img\",\n  { path = \"/srv/data.img\", readonly = true, direct = true, \
               serial = \"D1\", queues = 2, io = \"plain\", bandwidth = \"100M\", burst = \"200M\", ops = 1000, \
               ops-burst = 5000 },\n]",
    },
    apply: |asked, value| {
        let mut disk: DiskSpec = utf8(value)?.parse()?;
        disk.path = absolute(disk.path.as_os_str())?;
        asked.disk.push(disk);
        Ok(())
    },
};

const NET: Flag<Asked> = Flag {
    name: "net",
    short: None,
    takes: Takes::Texts("tap=NAME|fd=N|user[,KEY=VALUE]…|none"),
    help: "A virtio network device; repeat for more (eth0, eth1, …)",
    long: "Where it leads, one of:
  user                the world, as you reach it: by passt, without privileges or set-up
  tap=NAME            the host's tap device of this name
  fd=N                a tap device that is open as file descriptor N
  none                nowhere: the VM has no network, also none that it would have by default
Keys:
  mac=ADDRESS         the guest's address; by default one that stays the same for the VM's name
  mtu=N               the largest packet in bytes that the guest is told to send, 68 to 65520
  queues=N            queue pairs, 1 to 8 [default: 1]; a tap needs multi_queue for more than 1
  bandwidth=SIZE      bytes a second, such as 100M; bandwidth-burst=SIZE at once after a pause
  ops=N               packets a second; ops-burst=N at once after a pause
  burst=SIZE          short for bandwidth-burst, or for ops-burst where only ops are limited
A limit holds for each direction. Networks of the file come first, then those of the flags.",
    example: Example {
        args: &[
            "--net",
            "user",
            "--net",
            "tap=tap0,mac=52:54:00:12:34:56,mtu=9000,queues=4,bandwidth=100M,burst=200M,ops=10000",
        ],
        toml: "net = [\n  \"user\",\n  { tap = \"tap0\", mac = \"52:54:00:12:34:56\", mtu = 9000, queues = 4, \
               bandwidth = \"100M\", burst = \"200M\", ops = 10000 },\n]",
    },
    apply: |asked, value| {
        asked.net.push(utf8(value)?.parse()?);
        Ok(())
    },
};

const PUBLISH: Flag<Asked> = Flag {
    name: "publish",
    short: Some('p'),
    takes: Takes::Texts("[ADDRESS:]HOST:GUEST[/udp]"),
    help: "Let a port of the host lead to one of the guest; repeat for more",
    long: "Of TCP, or of UDP with /udp. Without an address, the host listens on all of its own. It is done by the first \
           user network; without any --net, there is one.",
    example: Example {
        args: &["-p", "127.0.0.1:8080:80", "--publish", "5353:53/udp"],
        toml: "publish = [\"127.0.0.1:8080:80\", \"5353:53/udp\"]",
    },
    apply: |asked, value| {
        asked.publish.push(utf8(value)?.parse()?);
        Ok(())
    },
};

const VSOCK: Flag<Asked> = Flag {
    name: "vsock",
    short: None,
    takes: Takes::Text("auto|[path=]FILE[,cid=N]"),
    help: "Stream sockets between guest and host, by this Unix socket",
    long: "A program on the host connects to the socket, writes `CONNECT PORT` and a newline, reads `OK` and a number on a \
           line, and is connected to the guest's vsock port. What the guest connects to (context ID 2, the host) is at \
           FILE_PORT, where a program of the host listens. The guest's own context ID is 3, or cid=N. With auto, the socket is \
           vsock.sock in the VM's own directory (skiff inspect names it): skiff exec needs no more.",
    example: Example {
        args: &["--vsock", "/run/user/1000/vm.sock,cid=7"],
        toml: "vsock = { path = \"/run/user/1000/vm.sock\", cid = 7 }",
    },
    apply: |asked, value| {
        let mut vsock: VsockSpec = utf8(value)?.parse()?;
        vsock.path = vsock.path.map(|path| absolute(path.as_os_str())).transpose()?;
        asked.vsock = Some(vsock);
        Ok(())
    },
};

const CPU_TEMPLATE: Flag<Asked> = Flag {
    name: "cpu-template",
    short: None,
    takes: Takes::File("FILE"),
    help: "What the guest is not to see of the host's processor, so that its snapshots fit other hosts",
    long: "A TOML file: `without = [\"avx512f\", …]` names features as /proc/cpuinfo does; each [[cpuid]] has leaf, subleaf \
           and bits of eax, ebx, ecx and edx, each [[msr]] index and bits. Bits are written as 0b and 0, 1 or x (as it \
           is), the lowest last. A snapshot of the VM can be restored on every host that has what is left.",
    example: Example {
        args: &["--cpu-template", "/etc/skiff/v3.toml"],
        toml: "cpu-template = \"/etc/skiff/v3.toml\"",
    },
    apply: |asked, value| {
        asked.cpu_template = Some(Template::File(absolute(value)?));
        Ok(())
    },
};

const SERIAL: Flag<Asked> = Flag {
    name: "serial",
    short: None,
    takes: Takes::Text(STREAM),
    help: "Where the serial port (ttyS0) leads [default: stdio, or null with --console stdio]",
    long: "stdio is this terminal, or whatever stdin and stdout are. A file is appended to. Only one of --serial \
           and --console can be stdio.",
    example: Example { args: &["--serial", "file=/tmp/guest.log"], toml: "serial = \"file=/tmp/guest.log\"" },
    apply: |asked, value| {
        asked.serial = Some(stream(value)?);
        Ok(())
    },
};

const CONSOLE: Flag<Asked> = Flag {
    name: "console",
    short: None,
    takes: Takes::Text(STREAM),
    help: "Where the virtio console (hvc0) leads [default: null]",
    long: "Faster than the serial port, and it follows the size of the terminal; a guest has it only once its \
           kernel has loaded the virtio drivers.",
    example: Example { args: &["--console", "stdio"], toml: "console = \"stdio\"" },
    apply: |asked, value| {
        asked.console = Some(stream(value)?);
        Ok(())
    },
};

const BALLOON: Flag<Asked> = Flag {
    name: "balloon",
    short: None,
    takes: Takes::Choice("on|off", &["on", "off"]),
    help: "Whether the guest has a balloon device [default: on]",
    long: "By it the guest tells how much memory it uses, gives pages that it no longer needs back to the host, and can \
           be asked for more.",
    example: Example { args: &["--balloon", "off"], toml: "balloon = false" },
    apply: |asked, value| {
        asked.balloon = Some(utf8(value)? == "on");
        Ok(())
    },
};

const TRANSPORT: Flag<Asked> = Flag {
    name: "transport",
    short: None,
    takes: Takes::Choice("KIND", &["pci", "mmio"]),
    help: "How virtio devices are reached [default: pci]",
    long: "",
    example: Example { args: &["--transport", "mmio"], toml: "transport = \"mmio\"" },
    apply: |asked, value| {
        asked.transport = Some(utf8(value)?.parse()?);
        Ok(())
    },
};

const CONFIG: Flag<Asked> = Flag {
    name: "config",
    short: None,
    takes: Takes::File("FILE"),
    help: "Take everything that is not given as a flag from this TOML file",
    long: "Each flag can stand in it under its own name. Relative paths in it start at the file's directory; \
           relative paths in flags start at the current one. A flag wins over the file; disks add up.",
    example: Example { args: &["--config", "/srv/vm.toml"], toml: "" },
    apply: |asked, value| {
        asked.config = Some(absolute(value)?);
        Ok(())
    },
};

const DRY_RUN: Flag<Asked> = Flag {
    name: "dry-run",
    short: None,
    takes: Takes::Nothing,
    help: "Check everything that needs no look at the host, print the resolved spec, and end",
    long: "What is printed is TOML that --config takes, with absolute paths and every default filled in. Neither \
           /dev/kvm nor the files named are touched.",
    example: Example { args: &["--dry-run"], toml: "dry-run = true" },
    apply: |asked, _| {
        asked.dry_run = Some(true);
        Ok(())
    },
};

const VERBOSE: Flag<Asked> = Flag {
    name: "verbose",
    short: None,
    takes: Takes::Count,
    help: "Say what is going on; given twice or three times, say more",
    long: "Log lines go to stderr, unless that is where the guest's console goes: then they go to a file in \
           $XDG_STATE_HOME/skiff (~/.local/state/skiff), whose name is said at the start. The variable SKIFF_LOG \
           picks levels by module, as in SKIFF_LOG=devices=trace,vmm=info.",
    example: Example { args: &["--verbose", "--verbose"], toml: "verbose = 2" },
    apply: |asked, _| {
        asked.verbose = Some(asked.verbose.unwrap_or(0).saturating_add(1));
        Ok(())
    },
};

const LOG_FILE: Flag<Asked> = Flag {
    name: "log-file",
    short: None,
    takes: Takes::File("FILE"),
    help: "Append log lines to this file; without --verbose or SKIFF_LOG, as if --verbose was given",
    long: "",
    example: Example { args: &["--log-file", "/tmp/skiff.log"], toml: "log-file = \"/tmp/skiff.log\"" },
    apply: |asked, value| {
        asked.log_file = Some(absolute(value)?);
        Ok(())
    },
};

const NAME: Flag<Asked> = Flag {
    name: "name",
    short: None,
    takes: Takes::Text("NAME"),
    help: "Call the VM so, and keep it when it stops [default: made up from two words]",
    long: "No other VM can have the name. A VM that was given one stays in skiff ps -a when it stops, with all that \
           was asked for here, until skiff rm removes it.",
    example: Example { args: &["--name", "web"], toml: "name = \"web\"" },
    apply: |asked, value| {
        let name = utf8(value)?;
        names::check(name)?;
        asked.name = Some(name.to_owned());
        Ok(())
    },
};

const DETACH: Flag<Asked> = Flag {
    name: "detach",
    short: Some('d'),
    takes: Takes::Nothing,
    help: "Return when the VM runs, and print its name",
    long: "skiff attach joins its console, skiff logs shows what it printed. It stays when it stops, as with --name.",
    example: Example { args: &["-d"], toml: "detach = true" },
    apply: |asked, _| {
        asked.detach = Some(true);
        Ok(())
    },
};

const ENTRYPOINT: Flag<Asked> = Flag {
    name: "entrypoint",
    short: None,
    takes: Takes::Text("PROGRAM"),
    help: "Run this in place of the image's own program, with CMD as its arguments",
    long: "What the image would tell its program is left out. Nothing, as in --entrypoint '', runs CMD itself.",
    example: Example { args: &["--entrypoint", "sh"], toml: "" },
    apply: |asked, value| {
        let text = utf8(value)?;
        anyhow::ensure!(!text.ends_with('/'), "'{text}' is a directory: name a program");
        asked.entrypoint = Some(text.to_owned());
        Ok(())
    },
};

const RM: Flag<Asked> = Flag {
    name: "rm",
    short: None,
    takes: Takes::Nothing,
    help: "Remove the VM when it stops, even with --name or -d",
    long: "",
    example: Example { args: &["--rm"], toml: "rm = true" },
    apply: |asked, _| {
        asked.rm = Some(true);
        Ok(())
    },
};

const FROM: Flag<Asked> = Flag {
    name: "from",
    short: None,
    takes: Takes::Point("VM[@SNAPSHOT]"),
    help: "Start from a snapshot of a VM, or from a VM as it is now",
    long: "The VM goes on from that instant with the snapshot's processors, memory and devices, beside the one it was taken of. It \
           is thrown away at its end with all that it has written, unless --keep, --name or -d is there.",
    example: Example { args: &["--from", "web@s1"], toml: "" },
    apply: |asked, value| {
        asked.from = Some(utf8(value)?.parse()?);
        Ok(())
    },
};

const KEEP: Flag<Asked> = Flag {
    name: "keep",
    short: None,
    takes: Takes::Nothing,
    help: "Keep a VM that starts from a snapshot when it stops, even without --name or -d",
    long: "",
    example: Example { args: &["--from", "web@s1", "--keep"], toml: "" },
    apply: |asked, _| {
        asked.keep = true;
        Ok(())
    },
};

fn stream(value: &OsStr) -> Result<vmm::spec::Stream> {
    absolute_stream(utf8(value)?.parse()?)
}
