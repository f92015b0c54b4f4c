//! [`work`]: a job, done by a process that is root, here or in a namespace.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::{DISK, Error, Job, Layer, Only, Outcome, io};
use crate::compress::Reader;
use crate::digest::Digest;
use crate::progress::Progress;
use crate::{ext4, kernel, os_release, tree};

/// The tree, in the job's directory.
const TREE: &str = "tree";
/// The most that is read of os-release, in bytes.
const OS_RELEASE: u64 = 64 << 10;

/// Does it. The tree is removed in any case.
pub fn work(job: &Job, progress: &mut dyn Progress) -> Result<Outcome, Error> {
    let path = job.work.join(TREE);
    fs::create_dir(&path).map_err(io("create the directory", &path))?;
    let done = with_tree(job, &path, progress);
    let dir = File::open(&job.work).map_err(io("open", &job.work))?;
    let removed = tree::remove(&dir, Path::new(TREE)).map_err(Error::Remove);
    let outcome = done?;
    removed.map(|()| outcome)
}

fn with_tree(job: &Job, path: &Path, progress: &mut dyn Progress) -> Result<Outcome, Error> {
    // A root directory without an entry of its own in the archive.
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .map_err(io("change", path))?;
    let root = File::open(path).map_err(io("open", path))?;
    let mut sum = tree::Unpacked::default();
    let mut limits = job.limits;
    let mut boots = None;
    for layer in &job.layers {
        let wanted = match layer.only {
            Only::Always => true,
            Only::Boots => *boots.get_or_insert_with(|| boots_itself(&root)),
            Only::BootsNot => !*boots.get_or_insert_with(|| boots_itself(&root)),
        };
        if !wanted {
            continue;
        }
        let unpacked = unpack(layer, &root, limits, progress)?;
        sum.entries = sum.entries.saturating_add(unpacked.entries);
        sum.bytes = sum.bytes.saturating_add(unpacked.bytes);
        sum.devices = sum.devices.saturating_add(unpacked.devices);
        sum.skipped = sum.skipped.saturating_add(unpacked.skipped);
        limits.bytes = limits.bytes.saturating_sub(unpacked.bytes);
        limits.entries = limits.entries.saturating_sub(unpacked.entries);
    }
    let boots = boots.unwrap_or_else(|| boots_itself(&root));
    let os = os_name(&root);
    let kernel = if job.kernel { kernel::take(&root, &job.work)? } else { None };
    let disk = match &job.disk {
        None => None,
        Some(disk) => {
            progress.step("making the file system");
            let making = ext4::Making {
                label: disk.label.clone(),
                size: disk.size,
                bytes: sum.bytes,
                entries: sum.entries,
            };
            Some(ext4::make(path, &job.work.join(DISK), &making)?.size)
        }
    };
    Ok(Outcome { unpacked: sum, os, boots, kernel, disk })
}

fn unpack(
    layer: &Layer,
    root: &File,
    limits: tree::Limits,
    progress: &mut dyn Progress,
) -> Result<tree::Unpacked, Error> {
    let failed = |doing| io(doing, &layer.archive);
    let file = File::open(&layer.archive).map_err(failed("open"))?;
    let total = file.metadata().map_err(failed("open"))?.len();
    // A few files of skiff's own are not worth a word.
    if total > 4 << 20 {
        progress.step("unpacking");
    }
    let counted = Counted { from: file, done: 0, total, progress };
    let reader = Reader::new(counted).map_err(failed("read"))?;
    let options = tree::Options { whiteouts: layer.whiteouts, limits, ..tree::Options::image() };
    let broken = |source| Error::Unpack { archive: layer.archive.clone(), source };
    let Some(wanted) = layer.digest else {
        return tree::unpack(reader, root, &options).map_err(broken);
    };
    let mut hashed = Hashed { from: reader, hash: Sha256::new() };
    let unpacked = tree::unpack(&mut hashed, root, &options).map_err(broken)?;
    io::copy(&mut hashed, &mut io::sink()).map_err(failed("read"))?;
    let found = Digest::from_hasher(hashed.hash);
    if found != wanted {
        return Err(Error::Digest { archive: layer.archive.clone(), wanted, found });
    }
    Ok(unpacked)
}

/// Whether systemd is there, and a kernel that gets to it.
fn boots_itself(root: impl AsFd) -> bool {
    let root = root.as_fd();
    let systemd = ["usr/lib/systemd/systemd", "lib/systemd/systemd"];
    systemd.iter().any(|path| tree::open(root, path).is_ok()) && kernel::boots(root)
}

/// What the system in the tree calls itself.
fn os_name(root: impl AsFd) -> Option<String> {
    let root = root.as_fd();
    let file = tree::open(root, "etc/os-release").or_else(|_| tree::open(root, "usr/lib/os-release")).ok()?;
    let mut text = String::new();
    file.take(OS_RELEASE).read_to_string(&mut text).ok()?;
    os_release::name(&text)
}

/// Says how much of a file has been read.
struct Counted<'a> {
    from: File,
    done: u64,
    total: u64,
    progress: &'a mut dyn Progress,
}

impl Read for Counted<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let got = self.from.read(into)?;
        self.done = self.done.saturating_add(got as u64);
        self.progress.advance(self.done, Some(self.total));
        Ok(got)
    }
}

/// Hashes what is read.
struct Hashed<R> {
    from: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let got = self.from.read(into)?;
        self.hash.update(into.get(..got).unwrap_or_default());
        Ok(got)
    }
}
