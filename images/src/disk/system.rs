//! The system on a disk: which partition is its root, and which kernel starts it.
//!
//! Every ext4 file system of the disk is looked into, by debugfs, in a process of its own: the one with an `os-release` is the root. Kernels are
//! looked for in its `/boot` and at the top of the others, since `/boot` may be one of them. All that is read has a limit.

use std::cmp::Ordering;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use devices::disk::SECTOR;

use super::bytes::Stored;
use super::error::{DiskError, Malformed, read_failed, write_failed};
use super::filesystem::{self, FileSystem};
use super::table::{self, Partition, Table};
use crate::ext4::{self, Debugfs, Kind};
use crate::os_release;

/// The largest text that is read from a file system, in bytes.
const MAX_TEXT: u64 = 256 << 10;
/// The largest kernel or initial RAM disk, in bytes.
const MAX_BOOT_FILE: u64 = 1 << 30;
/// The most links that are followed one after the other.
const MAX_LINKS: usize = 16;

/// A file system, or what stands in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Volume {
    /// Where it starts on the disk, in bytes.
    pub start: u64,
    pub kind: FileSystem,
    /// `None`: the whole disk.
    pub partition: Option<Partition>,
}

impl Volume {
    /// As `root=` takes it.
    pub(super) fn root(&self) -> String {
        self.partition
            .as_ref()
            .map_or("/dev/vda".to_owned(), |partition| format!("PARTUUID={}", partition.uuid))
    }

    fn shown(&self) -> String {
        let name = self.kind.name();
        match &self.partition {
            None => format!("the whole disk is {name}"),
            Some(partition) => format!("partition {} is {name}", partition.number),
        }
    }
}

/// A kernel on a disk, and its initial RAM disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Boot {
    /// Of the file system, in bytes.
    pub start: u64,
    pub kernel: String,
    pub initrd: Option<String>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct System {
    pub root: Volume,
    /// `PRETTY_NAME`; `None` if the root cannot be looked into.
    pub os: Option<String>,
    pub boot: Option<Boot>,
    /// It mounts its root read-only first, and again by its `/etc/fstab`.
    pub readonly_first: bool,
    /// Its init is systemd.
    pub systemd: bool,
}

/// The volumes of the raw disk `disk`, whose file is at `path` in messages.
///
/// # Errors
/// If it cannot be read, or its table is damaged.
pub(super) fn volumes(disk: &impl Stored, path: &Path) -> Result<Vec<Volume>, DiskError> {
    let size = disk.length().map_err(read_failed(path))?;
    let head = |start: u64| -> std::io::Result<FileSystem> {
        let mut head = vec![0; (68 << 10).min(size.saturating_sub(start)) as usize];
        disk.fill(&mut head, start)?;
        Ok(filesystem::of(&head))
    };
    let whole = head(0).map_err(read_failed(path))?;
    // A file system over the whole disk may have left an old table's end.
    if matches!(whole, FileSystem::Ext { .. }) {
        return Ok(vec![Volume { start: 0, kind: whole, partition: None }]);
    }
    match table::read(disk, size).map_err(read_failed(path))? {
        Table::None => Ok(vec![Volume { start: 0, kind: whole, partition: None }]),
        Table::Damaged => Err(DiskError::Image {
            path: path.to_owned(),
            source: Malformed::Damaged { what: "the partition table (GPT)", offset: SECTOR },
        }),
        Table::Partitions(partitions) => partitions
            .into_iter()
            .map(|partition| {
                let kind = head(partition.start).map_err(read_failed(path))?;
                Ok(Volume { start: partition.start, kind, partition: Some(partition) })
            })
            .collect(),
    }
}

/// Look for the system on the raw disk at `raw`, of which `volumes` are what is on it. `path` is where it came from.
///
/// # Errors
/// If there is none, or debugfs fails.
pub(super) fn find(raw: &Path, volumes: &[Volume], path: &Path) -> Result<System, DiskError> {
    let mut root = None;
    let mut boots = Vec::new();
    for volume in volumes.iter().filter(|volume| matches!(volume.kind, FileSystem::Ext { .. })) {
        let files = Files::open(raw, volume.start)?;
        if root.is_none()
            && let Some(os) = os_release(&files)?
        {
            root = Some((volume, os, files.is_there("/lib/systemd/systemd")?, has_root_entry(&files)?));
            boots.extend(boot(&files, "/boot")?);
        } else {
            boots.extend(boot(&files, "/")?);
        }
    }
    // The newest of all: `/boot` below a mount point may hold an old one.
    let boot = boots.into_iter().max_by(|one, other| compare_versions(&one.kernel, &other.kernel));
    if let Some((volume, os, systemd, readonly_first)) = root {
        return Ok(System { root: volume.clone(), os: Some(os), boot, readonly_first, systemd });
    }
    match guess(volumes) {
        Some(volume) => {
            Ok(System { root: volume.clone(), os: None, boot, readonly_first: true, systemd: false })
        }
        None => Err(DiskError::System { path: path.to_owned(), reason: nothing(volumes) }),
    }
}

/// The partition that is most likely the root of a system that cannot be looked into.
fn guess(volumes: &[Volume]) -> Option<&Volume> {
    let can_be = |volume: &&Volume| {
        matches!(volume.kind, FileSystem::Xfs | FileSystem::Btrfs | FileSystem::F2fs | FileSystem::Squashfs)
    };
    let len = |volume: &&Volume| volume.partition.as_ref().map_or(u64::MAX, |partition| partition.len);
    let marked = |volume: &&Volume| volume.partition.as_ref().is_some_and(|partition| partition.is_root);
    volumes.iter().filter(can_be).max_by_key(|volume| (marked(volume), len(volume)))
}

fn nothing(volumes: &[Volume]) -> String {
    if volumes.is_empty() {
        return "it is empty".to_owned();
    }
    let shown: Vec<String> = volumes.iter().take(16).map(Volume::shown).collect();
    format!(
        "{}; an ext4 file system with /etc/os-release is needed, or one of xfs or btrfs with --kernel-from IMAGE",
        shown.join(", ")
    )
}

/// A file system with its links followed inside it.
struct Files {
    files: Debugfs,
    /// Where it begins on the disk, in bytes.
    start: u64,
}

impl Files {
    fn open(raw: &Path, start: u64) -> Result<Self, DiskError> {
        let files = Debugfs::open(raw, start, false);
        let files = files.map_err(ext4_failed("looking into the disk's file system"))?;
        Ok(Self { files, start })
    }

    /// Where `path` leads in the end; `None` if that is nothing. Only the last name's links are followed here: debugfs follows those on the way.
    fn resolve(&self, path: &str) -> Result<Option<(String, Kind)>, DiskError> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            let stat = match self.files.stat(&path) {
                // A name that cannot be asked about is none of those that matter.
                Err(ext4::Error::Path { .. }) => return Ok(None),
                stat => stat.map_err(ext4_failed("looking for a file on the disk"))?,
            };
            match stat.map(|stat| stat.kind) {
                None => return Ok(None),
                Some(Kind::Symlink) => match self.files.read_link(&path) {
                    Ok(target) => path = joined(&path, &target),
                    Err(ext4::Error::Missing { .. } | ext4::Error::TooLarge { .. }) => return Ok(None),
                    Err(error) => return Err(ext4_failed("reading a link on the disk")(error)),
                },
                Some(kind) => return Ok(Some((path, kind))),
            }
        }
        Ok(None)
    }

    fn is_there(&self, path: &str) -> Result<bool, DiskError> {
        Ok(self.resolve(path)?.is_some())
    }

    /// A file's text; `None` if there is no such file, or it is too long to be one.
    fn text(&self, path: &str) -> Result<Option<String>, DiskError> {
        let Some((path, Kind::File)) = self.resolve(path)? else { return Ok(None) };
        match self.files.read(&path, MAX_TEXT) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(ext4::Error::TooLarge { .. } | ext4::Error::Missing { .. }) => Ok(None),
            Err(error) => Err(ext4_failed("reading a file on the disk")(error)),
        }
    }

    fn names(&self, dir: &str) -> Result<Vec<String>, DiskError> {
        let Some((dir, Kind::Directory)) = self.resolve(dir)? else { return Ok(Vec::new()) };
        let entries = self.files.list(&dir).map_err(ext4_failed("reading a directory on the disk"))?;
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }
}

pub(super) fn ext4_failed(what: &str) -> impl FnOnce(ext4::Error) -> DiskError {
    move |source| DiskError::Other { what: format!("{what} has failed"), source: Box::new(source) }
}

/// Where a link at `path` to `target` leads, with `.` and `..` taken away: no higher than the top.
fn joined(path: &str, target: &str) -> String {
    let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
    let whole = if target.starts_with('/') { target.to_owned() } else { format!("{dir}/{target}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// `PRETTY_NAME` of the root file system's os-release; `None` if it is no root file system.
fn os_release(files: &Files) -> Result<Option<String>, DiskError> {
    for path in ["/etc/os-release", "/usr/lib/os-release"] {
        if let Some(text) = files.text(path)? {
            return Ok(Some(os_release::name(&text).unwrap_or_else(|| "Linux".to_owned())));
        }
    }
    Ok(None)
}

fn has_root_entry(files: &Files) -> Result<bool, DiskError> {
    let text = files.text("/etc/fstab")?.unwrap_or_default();
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    Ok(lines.into_iter().any(|line| line.split_whitespace().nth(1) == Some("/")))
}

/// The newest kernel in a directory, and its initial RAM disk.
fn boot(files: &Files, dir: &str) -> Result<Option<Boot>, DiskError> {
    let names = files.names(dir)?;
    let in_dir = |name: &str| if dir == "/" { format!("/{name}") } else { format!("{dir}/{name}") };
    let Some((kernel, initrd)) = choose(&names) else { return Ok(None) };
    let Some((kernel_path, Kind::File)) = files.resolve(&in_dir(&kernel))? else { return Ok(None) };
    let initrd = initrd.map(|name| files.resolve(&in_dir(&name))).transpose()?.flatten();
    let initrd = initrd.filter(|(_, kind)| *kind == Kind::File).map(|(path, _)| path);
    Ok(Some(Boot { start: files.start, kernel: kernel_path, initrd }))
}

/// The kernel to start among the names in `/boot`, and its initial RAM disk, by the names that Debian, Fedora, openSUSE, Arch and Alpine use.
fn choose(names: &[String]) -> Option<(String, Option<String>)> {
    let version = |name: &str| -> Option<String> {
        let rest = name.strip_prefix("vmlinuz").or_else(|| name.strip_prefix("bzImage"))?;
        let rescue = rest.contains("rescue") || rest.ends_with(".old") || rest.ends_with(".hmac");
        (!rescue && (rest.is_empty() || rest.starts_with('-')))
            .then(|| rest.trim_start_matches('-').to_owned())
    };
    let initrd = |version: &str| {
        let dash = if version.is_empty() { String::new() } else { format!("-{version}") };
        let known = [
            format!("initrd.img{dash}"),
            format!("initramfs{dash}.img"),
            format!("initrd{dash}"),
            format!("initramfs{dash}"),
        ];
        known.into_iter().find(|name| names.contains(name))
    };
    let kernels = names.iter().filter_map(|name| Some((name, version(name)?)));
    let with_initrd = kernels.map(|(name, version)| (name, initrd(&version), version));
    // One that has an initial RAM disk is whole.
    let newest = with_initrd.max_by(|one, other| {
        one.1.is_some().cmp(&other.1.is_some()).then_with(|| compare_versions(&one.2, &other.2))
    });
    newest.map(|(name, initrd, _)| (name.clone(), initrd))
}

/// Which of two versions is the newer one: numbers in them count as numbers.
fn compare_versions(one: &str, other: &str) -> Ordering {
    let (mut one, mut other) = (one.as_bytes(), other.as_bytes());
    loop {
        let number = |text: &mut &[u8]| {
            let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let (number, rest) = text.split_at(digits);
            *text = rest;
            let zeroes = number.iter().take_while(|byte| **byte == b'0').count();
            number.get(zeroes..).unwrap_or_default().to_vec()
        };
        let (left, right) = (number(&mut one), number(&mut other));
        let order = left.len().cmp(&right.len()).then_with(|| left.cmp(&right));
        if order != Ordering::Equal {
            return order;
        }
        match (one.split_first(), other.split_first()) {
            (None, None) => return Ordering::Equal,
            (None, _) => return Ordering::Less,
            (_, None) => return Ordering::Greater,
            (Some((left, one_rest)), Some((right, other_rest))) => {
                if left != right {
                    return left.cmp(right);
                }
                (one, other) = (one_rest, other_rest);
            }
        }
    }
}

/// Take the kernel and its initial RAM disk out of the disk, into `work`.
///
/// # Errors
/// If they cannot be read, or the kernel is none that skiff starts.
pub(super) fn extract(
    raw: &Path,
    boot: &Boot,
    work: &Path,
    path: &Path,
) -> Result<(PathBuf, Option<PathBuf>), DiskError> {
    let files = Files::open(raw, boot.start)?;
    let take = |from: &str, name: &str| -> Result<PathBuf, DiskError> {
        let out = work.join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&out);
        let mut file = file.map_err(write_failed(&out))?;
        files
            .files
            .read_to(from, &mut file, MAX_BOOT_FILE)
            .map_err(ext4_failed("taking the kernel out of the disk"))?;
        Ok(out)
    };
    let kernel = take(&boot.kernel, "kernel")?;
    let mut head = [0; 0x206];
    let read = File::open(&kernel).and_then(|file| file.read_exact_at(&mut head, 0));
    // A bzImage (the boot protocol's "HdrS") or an ELF.
    if read.is_err() || !(head.get(0x202..) == Some(b"HdrS") || head.starts_with(b"\x7fELF")) {
        let reason = format!(
            "its kernel {} is no bzImage for this processor: take another one with --kernel-from IMAGE",
            boot.kernel
        );
        return Err(DiskError::System { path: path.to_owned(), reason });
    }
    let initrd = boot.initrd.as_deref().map(|initrd| take(initrd, "initrd")).transpose()?;
    Ok((kernel, initrd))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str]) -> Option<(String, Option<String>)> {
        choose(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_newest_whole_kernel_is_chosen_whatever_the_distribution() {
        let pair = |kernel: &str, initrd: &str| Some((kernel.to_owned(), Some(initrd.to_owned())));
        let debian = [
            "config-6.1.0-9-amd64",
            "initrd.img-6.1.0-10-amd64",
            "initrd.img-6.1.0-9-amd64",
            "vmlinuz-6.1.0-10-amd64",
            "vmlinuz-6.1.0-9-amd64",
        ];
        assert_eq!(chosen(&debian), pair("vmlinuz-6.1.0-10-amd64", "initrd.img-6.1.0-10-amd64"));
        let fedora = [
            "vmlinuz-0-rescue-0f1e2d",
            "initramfs-0-rescue-0f1e2d.img",
            "vmlinuz-6.8.5-301.fc40.x86_64",
            "initramfs-6.8.5-301.fc40.x86_64.img",
        ];
        assert_eq!(
            chosen(&fedora),
            pair("vmlinuz-6.8.5-301.fc40.x86_64", "initramfs-6.8.5-301.fc40.x86_64.img")
        );
        assert_eq!(
            chosen(&["vmlinuz-linux", "initramfs-linux.img"]),
            pair("vmlinuz-linux", "initramfs-linux.img")
        );
        assert_eq!(chosen(&["vmlinuz-virt", "initramfs-virt"]), pair("vmlinuz-virt", "initramfs-virt"));
        assert_eq!(chosen(&["vmlinuz", "initrd.img"]), pair("vmlinuz", "initrd.img"));
        assert_eq!(chosen(&["vmlinuz-9", "vmlinuz-8", "initrd-8"]), pair("vmlinuz-8", "initrd-8"));
        assert_eq!(chosen(&["vmlinuz-9"]), Some(("vmlinuz-9".to_owned(), None)));
        assert_eq!(chosen(&["grub", "vmlinuzfoo", "System.map"]), None);
    }

    #[test]
    fn versions_compare_by_their_numbers() {
        for (one, other) in [("6.1.0-9", "6.1.0-10"), ("5.10", "6.1"), ("6.1", "6.1.1"), ("6.01-a", "6.1-b")]
        {
            assert_eq!(compare_versions(one, other), Ordering::Less, "{one} {other}");
            assert_eq!(compare_versions(other, one), Ordering::Greater);
        }
        assert_eq!(compare_versions("6.1", "6.1"), Ordering::Equal);
    }

    #[test]
    fn links_stay_in_the_file_system() {
        assert_eq!(joined("/boot/vmlinuz", "vmlinuz-6.1"), "/boot/vmlinuz-6.1");
        assert_eq!(joined("/vmlinuz", "boot/vmlinuz-6.1"), "/boot/vmlinuz-6.1");
        assert_eq!(joined("/etc/os-release", "../usr/lib/os-release"), "/usr/lib/os-release");
        assert_eq!(joined("/etc/os-release", "../../../../etc/./passwd"), "/etc/passwd");
        assert_eq!(joined("/a", "/b/../.."), "/");
    }
}
