//! One disk that boots, in every format of `qemu-img convert`, each of which becomes an image again.

use std::process::Command;

use anyhow::Result;

use super::{Systems, container, text};
use crate::tool;

/// What qemu-img calls them. The images are called so with `disk-` before it.
const FORMATS: [&str; 4] = ["raw", "qcow2", "vmdk", "vhdx"];

/// Writes the container's root file system as a disk, converts that, and imports what comes of it.
pub fn make(systems: &Systems) -> Result<()> {
    let work = systems.scratch("disks")?;
    let disk = work.join("disk.img");
    systems.run(["image", "export", container::NAME, text(&disk)?])?;
    for format in FORMATS {
        let converted = work.join(&format!("disk.{format}"));
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", format]).arg(&disk).arg(&converted);
        tool::capture(&mut convert)?;
        let name = format!("disk-{format}");
        let import = ["image", "import", text(&converted)?, &name, "--kernel-from", container::NAME];
        systems.run(import)?;
    }
    Ok(())
}
