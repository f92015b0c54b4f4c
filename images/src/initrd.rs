//! Initial RAM disks in which skiff's agent is the init: two "newc" cpio archives, one behind the other (Linux
//! Documentation/driver-api/early-userspace/buffer-format.rst). The first has a kernel's modules and belongs to that kernel
//! ([`modules`]), the second has the agent ([`agent`]). The same input gives the same bytes.

use std::fmt::Write as _;

/// Where the modules are in it, and the names of their files in the order to load them, one a line.
pub const ORDER: &str = "modules/order";

/// A cpio archive under construction.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn dir(&mut self, path: &str) {
        self.entry(path, 0o040_755, &[], (0, 0));
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, 0o100_000 | mode, content, (0, 0));
    }

    fn device(&mut self, path: &str, numbers: (u32, u32)) {
        self.entry(path, 0o020_600, &[], numbers);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        // Archives behind it begin at a multiple of four.
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    /// Thirteen fields of eight hexadecimal digits, the name and the content, both padded to four bytes.
    fn entry(&mut self, path: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        self.entries = self.entries.saturating_add(1);
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        // Modules and the agent are far below 4 GiB.
        let size = u32::try_from(content.len()).unwrap_or_default();
        let name_size = u32::try_from(path.len()).unwrap_or_default().saturating_add(1);
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            // Writing to a string does not fail.
            let _ = write!(header, "{field:08x}");
        }
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// An archive of modules, in the order to load them: names without `.ko`, and what their files hold, uncompressed.
#[must_use]
pub fn modules(modules: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.dir("modules");
    let mut order = String::new();
    for (name, content) in modules {
        archive.file(&format!("modules/{name}.ko"), 0o644, content);
        // Writing to a string does not fail.
        let _ = writeln!(order, "{name}.ko");
    }
    archive.file(ORDER, 0o644, order.as_bytes());
    archive.finish()
}

/// An archive with the agent's program as the init, to put behind that of the modules.
#[must_use]
pub fn agent(program: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    for dir in ["dev", "proc", "sys", "run", "tmp", "root-fs"] {
        archive.dir(dir);
    }
    archive.device("dev/console", (5, 1));
    archive.device("dev/null", (1, 3));
    archive.file("init", 0o755, program);
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_in_the_order_to_load_them() {
        let bytes = modules(&[("virtio".to_owned(), vec![1; 5]), ("virtio_blk".to_owned(), vec![2; 3])]);
        assert_eq!(bytes.len() % 512, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 5);
        assert!(text.contains("virtio.ko\nvirtio_blk.ko\n"));
        assert!(text.contains("TRAILER!!!\0"));
        let agent = agent(b"program");
        assert!(agent.windows(7).any(|window| window == b"program"));
    }
}
