//! An image's disk as one file for other programs.
//!
//! raw and qcow2 are written here; vmdk and vhdx by `qemu-img` from skiff's own files. Whatever is written is made in a directory of its own beside its
//! place, under its own name (a vmdk has it in itself), synced, and moved.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use devices::disk::layer::{self, Content};
use devices::storage::HostStorage;

use super::Format;
use super::error::{DiskError, copy_failed, write_failed};
use super::raw::{self, Room};
use crate::child::{self, Ending, Running};
use crate::progress::Progress;
use crate::unfinished::Unfinished;

/// The most that is kept of what qemu-img complains, in bytes.
const MAX_SAID: u64 = 64 << 10;

/// Write the disk whose top layer is at `top`, a file of skiff's own, to `to`, as one file that stands alone. What was at `to` is replaced at once.
///
/// # Errors
/// If it cannot be read, the program for the format is missing, or the host fails; then `to` is what it was.
pub fn export(top: &Path, to: &Path, format: Format, progress: &mut dyn Progress) -> Result<(), DiskError> {
    let aside = Aside::of(to)?;
    let (dir, out) = (aside.dir(), aside.path());
    progress.step(&format!("writing {}", to.display()));
    match format {
        Format::Raw => {
            let mut content = Content::open(&HostStorage, top)?;
            let tell = &mut |done, total| progress.advance(done, Some(total));
            raw::write(&mut content, out, tell).map_err(copy_failed(top, to))?;
        }
        Format::Qcow2 => {
            let mut content = Content::open(&HostStorage, top)?;
            let mut room = Room::new(dir);
            let mut tell = |done: u64, total: u64| {
                progress.advance(done, Some(total));
                room.check(done)
            };
            layer::pack(&HostStorage, &mut content, out, &mut tell)?;
        }
        Format::Vmdk | Format::Vhdx => convert(top, out, format, progress)?,
    }
    aside.publish(to)
}

/// A place for a file that is not finished, in a directory of its own beside where it belongs. The directory goes with all that is in it.
pub(super) struct Aside {
    dir: Unfinished,
    path: PathBuf,
}

impl Aside {
    /// For the file `to`.
    pub(super) fn of(to: &Path) -> Result<Self, DiskError> {
        let name = to.file_name().ok_or_else(|| DiskError::NotAFile { path: to.to_owned() })?;
        let beside = parent(to);
        for attempt in 0..100 {
            let dir = beside.join(format!(".skiff-export-{}-{attempt}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&dir) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => {
                    made.map_err(write_failed(&dir))?;
                    return Ok(Self { path: dir.join(name), dir: Unfinished::new(dir) });
                }
            }
        }
        Err(write_failed(beside)(io::ErrorKind::AlreadyExists.into()))
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the file is made.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file is finished: it becomes `to` at once.
    pub(super) fn publish(&self, to: &Path) -> Result<(), DiskError> {
        let synced = File::open(&self.path).and_then(|file| file.sync_all());
        let moved = synced.and_then(|()| fs::rename(&self.path, to));
        moved.and_then(|()| File::open(parent(to))?.sync_all()).map_err(write_failed(to))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // It is empty by now, or what is in it is of no use.
        let _ = fs::remove_dir_all(self.dir.path());
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn convert(top: &Path, out: &Path, format: Format, progress: &mut dyn Progress) -> Result<(), DiskError> {
    let other = |what: String, source: io::Error| DiskError::Other { what, source: Box::new(source) };
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-p", "-f", "qcow2", "-O", format.name()]);
    if format == Format::Vhdx {
        command.args(["-o", "subformat=dynamic"]);
    }
    // Absolute, so that no name can be taken for a protocol.
    let (top_path, out_path) = (absolute(top)?, absolute(out)?);
    command.arg(top_path).arg(out_path).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let running = child::start(&mut command, Ending::Kill).map_err(|source| {
        other(
            format!(
                "qemu-img, which writes {}, does not start: install the package qemu-utils",
                format.name()
            ),
            source,
        )
    })?;
    let said = watch(running, progress).map_err(|source| other("qemu-img has failed".to_owned(), source))?;
    match said {
        None => Ok(()),
        Some(said) => Err(other(format!("qemu-img cannot write {}", out.display()), io::Error::other(said))),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, DiskError> {
    std::path::absolute(path).map_err(write_failed(path))
}

/// Wait for its end, and tell of its progress. Returns what it says if it fails.
fn watch(mut running: Running, progress: &mut dyn Progress) -> io::Result<Option<String>> {
    let stderr = running.child().stderr.take();
    let complaints = std::thread::spawn(move || {
        let mut said = Vec::new();
        if let Some(stderr) = stderr {
            let _ = stderr.take(MAX_SAID).read_to_end(&mut said);
        }
        said
    });
    if let Some(mut stdout) = running.child().stdout.take() {
        let mut buffer = [0; 4096];
        loop {
            let len = stdout.read(&mut buffer)?;
            if len == 0 {
                break;
            }
            if let Some(done) = percent(buffer.get(..len).unwrap_or_default()) {
                progress.advance(done, Some(10_000));
            }
        }
    }
    let status = running.end()?;
    let said = String::from_utf8_lossy(&complaints.join().unwrap_or_default()).trim().replace('\n', ", ");
    Ok((!status.success()).then_some(said))
}

/// The last `(12.34/100%)` in what qemu-img prints, in hundredths of a percent.
fn percent(text: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(text);
    let (before, _) = text.rsplit_once("/100%")?;
    let (whole, part) = before.rsplit_once('(')?.1.trim().split_once('.')?;
    let (whole, part): (u64, u64) = (whole.parse().ok()?, part.parse().ok()?);
    (whole <= 100 && part < 100).then_some(whole * 100 + part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_what_qemu_img_prints() {
        assert_eq!(percent(b"    (0.00/100%)\r    (12.34/100%)\r"), Some(1234));
        assert_eq!(percent(b"    (100.00/100%)\r"), Some(10_000));
        assert_eq!(percent(b"nothing"), None);
        assert_eq!(percent(b"(x.y/100%)"), None);
    }
}
