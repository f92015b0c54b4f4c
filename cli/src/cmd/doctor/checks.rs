//! What is to be thought of the host: each check takes facts and makes a finding of them.

use std::io::{self, ErrorKind};
use std::path::PathBuf;

use anyhow::Result;
use images::debian::KEYRING;
use images::rootless;
use vmm::host_check::{KVM_DEVICE, KvmError, KvmFacts, Virtualization};
use vmm::spec::Memory;

use super::Finding;
use super::probe::{Host, TUN, Tool, Uidmap};

/// With less memory than this free, in bytes, the smallest of Linux guests gets into trouble.
const LITTLE_MEMORY: u64 = 256 << 20;
/// A VM with many disks, queues and connections has this many files open.
const FILES: u64 = 1024;
/// Before Linux 5.12, what io_uring shares with the kernel counts as locked: this is enough for all disks of a VM, in bytes.
const LOCKED: u64 = 1 << 20;

/// All of them, those first without which nothing runs.
pub(super) fn all(host: &Host) -> Vec<Finding> {
    let virtualization = Virtualization::of(&host.cpuinfo);
    let mut findings = vec![
        processor(&host.cpuinfo, host.kvm_pvm, host.kvm.is_ok()),
        kvm(&host.kvm, virtualization, host.kvm_group.as_deref()),
        memory(&host.meminfo),
        state(&host.state),
        files(host.files),
        locked_memory(host.locked),
        io_uring(&host.io_uring, host.io_uring_disabled),
        huge_pages(&host.meminfo),
        tun(&host.tun),
        tool("passt", host.passt.as_ref(), "--net user and --publish do not work", "sudo apt install passt"),
        tool(
            "qemu-img",
            host.qemu_img.as_ref(),
            "skiff does without, but disk images cannot be made or converted with it",
            "sudo apt install qemu-utils",
        ),
        tool(
            "mmdebstrap",
            host.mmdebstrap.as_ref(),
            "images of Debian and the kernel for other images cannot be built",
            "sudo apt install mmdebstrap",
        ),
        keyring(host.keyring),
        e2fsprogs(host.mke2fs.as_ref(), host.debugfs.as_ref()),
    ];
    findings.extend(host.uidmap.as_ref().map(uidmap));
    findings
}

/// VT-x or AMD-V.
fn processor(cpuinfo: &str, kvm_pvm: bool, kvm_works: bool) -> Finding {
    const CHECK: &str = "processor";
    let name = match Virtualization::of(cpuinfo) {
        Some(Virtualization::VtX) => "Intel VT-x (vmx)",
        Some(Virtualization::AmdV) => "AMD-V (svm)",
        None if kvm_works || kvm_pvm => {
            let module = if kvm_pvm { " (kvm_pvm)" } else { "" };
            return Finding::warn(
                CHECK,
                format!(
                    "neither vmx nor svm: KVM is software-assisted{module}, and stock Linux kernels do not run on it"
                ),
                "use a host with VT-x or AMD-V; as a VM in a cloud, one with nested virtualization",
            );
        }
        None => {
            return Finding::fail(
                CHECK,
                "neither vmx nor svm",
                "enable VT-x or AMD-V (SVM) in the firmware; in a VM, enable nested virtualization on its host",
            );
        }
    };
    // Hypervisors say by this bit that they are there.
    let nested = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"));
    Finding::ok(
        CHECK,
        if nested { format!("{name}, nested: this host is a VM itself") } else { name.to_owned() },
    )
}

/// The device, the right to use it, and what it can do.
fn kvm(
    kvm: &Result<KvmFacts, KvmError>,
    virtualization: Option<Virtualization>,
    group: Option<&str>,
) -> Finding {
    const CHECK: &str = "kvm";
    let error = match kvm {
        Ok(facts) => return Finding::ok(CHECK, format!("{KVM_DEVICE}, up to {} vCPUs a VM", facts.max_cpus)),
        Err(error) => error,
    };
    match error {
        KvmError::Missing(_) => {
            let fix = match virtualization {
                Some(Virtualization::VtX) => {
                    "sudo modprobe kvm_intel; in a container, pass the device in (--device /dev/kvm)"
                }
                Some(Virtualization::AmdV) => {
                    "sudo modprobe kvm_amd; in a container, pass the device in (--device /dev/kvm)"
                }
                None => "enable VT-x or AMD-V first, then sudo modprobe kvm_intel (or kvm_amd)",
            };
            Finding::fail(CHECK, format!("there is no {KVM_DEVICE}"), fix)
        }
        KvmError::Permission(_) => {
            let fix = match group {
                // Root's group is nothing to join.
                Some(group) if group != "root" => {
                    format!("sudo usermod -aG {group} $USER, then log in again")
                }
                _ => format!("sudo setfacl -m u:$USER:rw {KVM_DEVICE}"),
            };
            Finding::fail(CHECK, format!("no permission to open {KVM_DEVICE}"), fix)
        }
        KvmError::Version(version) => Finding::fail(
            CHECK,
            format!("{KVM_DEVICE} speaks API version {version}"),
            "use Linux 4.12 or newer on x86-64",
        ),
        KvmError::Lacks(what) => {
            Finding::fail(CHECK, format!("{KVM_DEVICE} lacks {what}"), "use Linux 4.12 or newer on x86-64")
        }
        KvmError::Busy { .. } => Finding::fail(
            CHECK,
            "another hypervisor uses the processor's virtualization",
            "end the VMs of VirtualBox or VMware, or unload its kernel module",
        ),
        other => Finding::fail(CHECK, chain(other), "see the kernel's log (sudo dmesg) for the reason"),
    }
}

/// How much there is, and how much of it is free.
fn memory(meminfo: &str) -> Finding {
    const CHECK: &str = "memory";
    let (Some(total), Some(free)) = (kilobytes(meminfo, "MemTotal"), kilobytes(meminfo, "MemAvailable"))
    else {
        return Finding::warn(CHECK, "/proc/meminfo does not say how much there is", "mount /proc");
    };
    let found = format!("{}, {} of it free", mebibytes(total), mebibytes(free));
    if free < LITTLE_MEMORY {
        return Finding::warn(CHECK, found, "end other programs, or give VMs less (--memory)");
    }
    Finding::ok(CHECK, found)
}

/// The directory that VMs are kept in.
fn state(state: &Result<PathBuf>) -> Finding {
    const CHECK: &str = "state";
    match state {
        Ok(dir) => Finding::ok(CHECK, format!("VMs are kept in {}", dir.display())),
        Err(error) => Finding::fail(
            CHECK,
            format!("{error:#}"),
            "set XDG_STATE_HOME to a directory of yours whose file system knows sockets",
        ),
    }
}

/// How many files a process may have open.
fn files((now, most): (Option<u64>, Option<u64>)) -> Finding {
    const CHECK: &str = "open-files";
    match now {
        Some(now) if now < FILES => {
            let found = format!("{now} a process; a VM with many disks and connections needs more");
            let own = most.is_none_or(|most| most >= FILES);
            let fix = if own { format!("ulimit -n {FILES}") } else { limits_conf("nofile", FILES) };
            Finding::warn(CHECK, found, fix)
        }
        Some(now) => Finding::ok(CHECK, format!("{now} a process")),
        None => Finding::ok(CHECK, "as many as wanted"),
    }
}

/// How much memory a process may lock.
fn locked_memory((now, most): (Option<u64>, Option<u64>)) -> Finding {
    const CHECK: &str = "locked-memory";
    match now {
        Some(now) if now < LOCKED => {
            let found = format!("{} KiB a process; io_uring of Linux before 5.12 needs more", now >> 10);
            let own = most.is_none_or(|most| most >= LOCKED);
            let fix = if own {
                format!("ulimit -l {}", LOCKED >> 10)
            } else {
                limits_conf("memlock", LOCKED >> 10)
            };
            Finding::warn(CHECK, found, fix)
        }
        Some(now) => Finding::ok(CHECK, format!("{} a process", mebibytes(now))),
        None => Finding::ok(CHECK, "as much as wanted"),
    }
}

/// For a limit that only root can raise.
fn limits_conf(item: &str, value: u64) -> String {
    format!(
        "echo \"$USER hard {item} {value}\" | sudo tee /etc/security/limits.d/skiff.conf, then log in again"
    )
}

/// How disks reach the kernel fastest.
fn io_uring(works: &io::Result<()>, disabled: Option<u32>) -> Finding {
    const CHECK: &str = "io_uring";
    let Err(error) = works else { return Finding::ok(CHECK, "allowed") };
    let slower = "disks use plain system calls, which is slower";
    match (error.kind(), disabled) {
        (_, Some(level @ 1..)) => Finding::warn(
            CHECK,
            format!("switched off (kernel.io_uring_disabled={level}); {slower}"),
            "sudo sysctl kernel.io_uring_disabled=0",
        ),
        (ErrorKind::PermissionDenied, _) => Finding::warn(
            CHECK,
            format!("forbidden by a seccomp filter, as containers have; {slower}"),
            "allow io_uring in the container's seccomp profile",
        ),
        (ErrorKind::Unsupported, _) => {
            Finding::warn(CHECK, format!("this kernel has none; {slower}"), "use Linux 5.6 or newer")
        }
        _ => Finding::warn(
            CHECK,
            format!("{error}; {slower}"),
            "raise the limits above, or use Linux 5.12 or newer",
        ),
    }
}

/// The host's reserved huge pages.
fn huge_pages(meminfo: &str) -> Finding {
    const CHECK: &str = "huge-pages";
    const FIX: &str = "for 1 GiB: sudo sysctl vm.nr_hugepages=512";
    let (Some(total), Some(free)) = (number(meminfo, "HugePages_Total"), number(meminfo, "HugePages_Free"))
    else {
        return Finding::warn(CHECK, "this kernel has none", "use a kernel with CONFIG_HUGETLBFS");
    };
    let size = kilobytes(meminfo, "Hugepagesize").unwrap_or(0);
    let found = format!("{free} of {total} free, {} each", mebibytes(size));
    match (total, free) {
        (0, _) => Finding::warn(CHECK, "none reserved; --memory with hugepages=on does not work", FIX),
        (_, 0) => Finding::warn(
            CHECK,
            format!("{found}; --memory with hugepages=on does not work"),
            "reserve more: sudo sysctl vm.nr_hugepages=N",
        ),
        _ if size != 2 << 20 => Finding::warn(
            CHECK,
            format!("{found}; skiff takes those of 2 MiB"),
            "boot with default_hugepagesz=2M",
        ),
        _ => Finding::ok(CHECK, found),
    }
}

/// Tap devices.
fn tun(opened: &io::Result<()>) -> Finding {
    const CHECK: &str = "tun";
    let Err(error) = opened else { return Finding::ok(CHECK, format!("{TUN} can be opened")) };
    let without = "--net tap=NAME does not work";
    match error.kind() {
        ErrorKind::NotFound => {
            Finding::warn(CHECK, format!("there is no {TUN}; {without}"), "sudo modprobe tun")
        }
        ErrorKind::PermissionDenied => Finding::warn(
            CHECK,
            format!("no permission to open {TUN}; {without}"),
            format!("sudo chmod 666 {TUN}"),
        ),
        _ => Finding::warn(CHECK, format!("cannot open {TUN}: {error}; {without}"), "sudo modprobe tun"),
    }
}

/// A program that skiff does not always need.
fn tool(check: &'static str, tool: Option<&Tool>, without: &str, install: &str) -> Finding {
    match tool {
        None => Finding::warn(check, format!("not installed; {without}"), install),
        Some(Tool { path, version: None }) => Finding::ok(check, path.display().to_string()),
        Some(Tool { path, version: Some(version) }) => {
            Finding::ok(check, format!("{}, {version}", path.display()))
        }
    }
}

/// What Debian's packages are checked with.
fn keyring(there: bool) -> Finding {
    const CHECK: &str = "debian-keys";
    if there {
        return Finding::ok(CHECK, KEYRING);
    }
    Finding::warn(
        CHECK,
        format!("there is no {KEYRING}; images of Debian may not be built"),
        "sudo apt install debian-archive-keyring",
    )
}

/// What makes file systems, and looks into them.
fn e2fsprogs(mke2fs: Option<&Tool>, debugfs: Option<&Tool>) -> Finding {
    const CHECK: &str = "e2fsprogs";
    let (Some(mke2fs), Some(debugfs)) = (mke2fs, debugfs) else {
        return Finding::warn(
            CHECK,
            "not installed; images cannot be built or pulled",
            "sudo apt install e2fsprogs",
        );
    };
    Finding::ok(CHECK, format!("{}, {}", mke2fs.path.display(), debugfs.path.display()))
}

/// With what a user who is not root gives files of images their owners.
fn uidmap(found: &Uidmap) -> Finding {
    const CHECK: &str = "uidmap";
    const WITHOUT: &str = "images can be built and pulled by root only";
    let (Some(newuidmap), Some(newgidmap)) = (&found.newuidmap, &found.newgidmap) else {
        return Finding::warn(CHECK, format!("not installed; {WITHOUT}"), "sudo apt install uidmap");
    };
    match &found.ids {
        Ok(()) => Finding::ok(CHECK, format!("{}, {}", newuidmap.path.display(), newgidmap.path.display())),
        Err(rootless::Error::NoIds { file, user }) => Finding::warn(
            CHECK,
            format!("{file} gives {user} no IDs; {WITHOUT}"),
            format!("echo {user}:100000:65536 | sudo tee -a {file}"),
        ),
        Err(error) => Finding::warn(CHECK, format!("{error}; {WITHOUT}"), "sudo apt install uidmap"),
    }
}

/// The number that `meminfo` gives for `key`.
fn number(meminfo: &str, key: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse().ok()
}

/// The amount that `meminfo` gives for `key`, in bytes.
fn kilobytes(meminfo: &str, key: &str) -> Option<u64> {
    number(meminfo, key)?.checked_mul(1 << 10)
}

/// `bytes` rounded down to whole MiB, as text.
fn mebibytes(bytes: u64) -> Memory {
    Memory(bytes & !((1 << 20) - 1))
}

/// `error` and what caused it.
fn chain(error: &KvmError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
