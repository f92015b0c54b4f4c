//! Other virtual machine monitors: the command that does with each what skiff is measured at.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result};

use crate::place::Place;
use crate::{paths, tool};

/// A monitor, or a kind of machine of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    QemuMicrovm,
    QemuQ35,
    Firecracker,
    CloudHypervisor,
}

/// What to boot.
pub struct Work<'a> {
    /// What QEMU and Cloud Hypervisor take.
    pub kernel: &'a Path,
    /// The same as plain ELF, which is what Firecracker takes.
    pub elf: &'a Path,
    pub initrd: Option<&'a Path>,
    pub cmdline: &'a str,
    pub mebibytes: u32,
}

impl Peer {
    const ALL: [Peer; 4] = [Peer::QemuMicrovm, Peer::QemuQ35, Peer::Firecracker, Peer::CloudHypervisor];

    /// Those that are on PATH.
    pub fn found() -> Vec<Peer> {
        Peer::ALL.into_iter().filter(|peer| tool::find(peer.program()).is_some()).collect()
    }

    pub fn name(self) -> &'static str {
        match self {
            Peer::QemuMicrovm => "QEMU microvm",
            Peer::QemuQ35 => "QEMU q35",
            Peer::Firecracker => "Firecracker",
            Peer::CloudHypervisor => "Cloud Hypervisor",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Peer::QemuMicrovm | Peer::QemuQ35 => "qemu-system-x86_64",
            Peer::Firecracker => "firecracker",
            Peer::CloudHypervisor => "cloud-hypervisor",
        }
    }

    /// The command that boots `work` with its serial port on standard output. `dir` is for what it needs in files.
    ///
    /// # Errors
    /// When such a file cannot be written.
    pub fn command(self, work: &Work<'_>, dir: &Path) -> Result<Vec<OsString>> {
        let words = match self {
            Peer::QemuMicrovm => qemu("microvm", work),
            Peer::QemuQ35 => qemu("q35", work),
            Peer::Firecracker => firecracker(work, dir)?,
            Peer::CloudHypervisor => cloud_hypervisor(work),
        };
        Ok([self.program().into()].into_iter().chain(words).collect())
    }
}

fn words(text: &str) -> impl Iterator<Item = OsString> + '_ {
    text.split(' ').map(OsString::from)
}

fn qemu(machine: &str, work: &Work<'_>) -> Vec<OsString> {
    let mut list: Vec<OsString> = words("-accel kvm -smp 1 -nodefaults -no-user-config -cpu").collect();
    list.push(qemu_cpu().into());
    list.extend(words("-display none -serial stdio -no-reboot -M"));
    list.push(machine.into());
    list.extend(["-m".into(), format!("{}M", work.mebibytes).into()]);
    list.extend(["-kernel".into(), work.kernel.into()]);
    if let Some(initrd) = work.initrd {
        list.extend(["-initrd".into(), initrd.into()]);
    }
    list.extend(["-append".into(), work.cmdline.into()]);
    list
}

/// The processor that QEMU shows its guest: the host's. A KVM that works in software may refuse a register of that one
/// (`IA32_ARCH_CAPABILITIES`), at which QEMU ends.
pub fn qemu_cpu() -> &'static str {
    match Place::of_machine() {
        Place::Host(_) => "host",
        Place::Kvmbox(_) => "host,-arch-capabilities",
    }
}

fn cloud_hypervisor(work: &Work<'_>) -> Vec<OsString> {
    let mut list: Vec<OsString> = words("--cpus boot=1 --serial tty --console off --memory").collect();
    list.push(format!("size={}M", work.mebibytes).into());
    list.extend(["--kernel".into(), work.kernel.into()]);
    if let Some(initrd) = work.initrd {
        list.extend(["--initramfs".into(), initrd.into()]);
    }
    list.extend(["--cmdline".into(), work.cmdline.into()]);
    list
}

fn firecracker(work: &Work<'_>, dir: &Path) -> Result<Vec<OsString>> {
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a path is not UTF-8");
    let mut source = serde_json::json!({
        "kernel_image_path": text(work.elf)?,
        "boot_args": format!("{} reboot=k", work.cmdline),
    });
    if let Some(initrd) = work.initrd {
        source["initrd_path"] = text(initrd)?.into();
    }
    let config = serde_json::json!({
        "boot-source": source,
        "drives": [],
        "machine-config": { "vcpu_count": 1, "mem_size_mib": work.mebibytes },
    });
    let file = dir.join("firecracker.json");
    paths::write_whole(&file, config.to_string().as_bytes())?;
    let mut list: Vec<OsString> = words("--no-api --level Off --config-file").collect();
    list.push(file.into());
    Ok(list)
}
