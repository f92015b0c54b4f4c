//! A Debian with cloud-init, as clouds have it: made by mmdebstrap alone, imported as the archive of a root file system.

use std::process::Command;

use anyhow::{Context, Result};

use super::{Systems, text};
use crate::tool;
use crate::{debian::Release, paths};

/// What it is called.
pub const NAME: &str = "cloud:12";

const PACKAGES: &str =
    "systemd-sysv,dbus,udev,login,passwd,iproute2,initramfs-tools,linux-image-cloud-amd64,cloud-init";
/// Only what a test looks at: a Python program is slow under an emulated hypervisor, and each module of cloud-init is more of it.
const CLOUD: &str = "datasource_list: [NoCloud]
datasource: {NoCloud: {}}
network: {config: disabled}
cloud_init_modules: [write-files, users-groups]
cloud_config_modules: []
cloud_final_modules: []
";
/// Only the drivers of a VM: what is unpacked at each boot is small.
const INITRD: &str = "virtio_pci\nvirtio_blk\nvirtio_console\nvirtio_rng\next4\ncrc32c\n";
/// What finds nothing to do in such a guest.
const MASKED: [&str; 8] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "cloud-config.service",
    "cloud-final.service",
    "systemd-networkd-wait-online.service",
    "systemd-pstore.service",
];

/// Builds it.
pub fn make(systems: &Systems) -> Result<()> {
    let work = systems.scratch("cloud")?;
    let (archive, config, modules) = (work.join("root.tar"), work.join("cloud.cfg"), work.join("modules"));
    paths::write_whole(&config, CLOUD.as_bytes())?;
    paths::write_whole(&modules, INITRD.as_bytes())?;
    let mut build = Command::new("mmdebstrap");
    build.args(["--variant=minbase", "--format=tar", "--skip=output/mknod"]);
    build.arg(format!("--include={PACKAGES}"));
    build.arg("--essential-hook=mkdir -p \"$1/etc/initramfs-tools/conf.d\"");
    build.arg("--essential-hook=echo MODULES=list >\"$1/etc/initramfs-tools/conf.d/skiff.conf\"");
    build.arg(format!("--essential-hook=upload {} /etc/initramfs-tools/modules", text(&modules)?));
    build.arg(format!("--customize-hook=upload {} /etc/cloud/cloud.cfg.d/99-skiff.cfg", text(&config)?));
    build.arg("--customize-hook=echo '/dev/vda / ext4 defaults,noatime 0 0' >\"$1/etc/fstab\"");
    for unit in MASKED {
        build.arg(format!("--customize-hook=ln -sf /dev/null \"$1/etc/systemd/system/{unit}\""));
    }
    build.arg(Release::Bookworm.suite()).arg(&archive);
    tool::capture(&mut build).context("cannot build a Debian with cloud-init")?;
    systems.run(["image", "import", text(&archive)?, NAME]).map(drop)
}
