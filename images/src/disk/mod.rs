//! Disks that come from elsewhere, and disks that go there.
//!
//! ```text
//! FILE ─recognise─► Source (raw, qcow2, vmdk, vhdx) ─► private raw copy, sparse ─system::find─► partition, kernel, initrd
//!                                                         │ agent put in, by debugfs
//!                                                         └──► qcow2 ─► the store
//! ```
//! Every format of a disk is read here, and its table of partitions, by owned parsers that check each number before it is used. Of its
//! file systems, ext4 is not: `debugfs` and `e2fsck` look into the private copy, each in a process of its own. A file cannot say which other
//! file is opened: the one exception is the `-flat.vmdk` beside a descriptor. Runs on the caller's thread.

mod archive;
mod bytes;
mod error;
mod export;
mod filesystem;
mod raw;
mod recognise;
mod system;
mod table;
#[cfg(test)]
mod tests;
mod vhdx;
mod vmdk;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ::agent::install::{self, Item, Kind};
use devices::disk::layer::{self, Content, Source};
use devices::storage::HostStorage;
use serde::{Deserialize, Serialize};

use self::error::{copy_failed, read_failed, read_or_malformed, write_failed};
use self::filesystem::FileSystem;
use self::raw::{Raw, Room};
use self::system::{System, Volume};
pub use archive::{archive, export_files};
pub use error::{DiskError, Malformed};
pub use export::export;

use crate::compress;
use crate::ext4::{self, Change, Debugfs};
use crate::manifest::{self, Agent, Defaults, Disk, Manifest, SCHEMA};
use crate::progress::Progress;
use crate::store::{Store, StoreError};

/// The largest disk that is imported, in bytes: 8 TiB.
pub const MAX_SIZE: u64 = 8 << 40;

/// The format of a disk's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A disk's offset is the file's.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// Hyper-V's.
    Vhdx,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Raw, Self::Qcow2, Self::Vmdk, Self::Vhdx];

    /// What it is called, by `qemu-img` as well.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhdx => "vhdx",
        }
    }
}

/// How a disk is imported.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// The agent's program, to be put in; `None`: the disk stays as it is.
    pub agent: Option<&'a [u8]>,
    /// The image whose kernel and initial RAM disk to take, instead of looking for one on the disk.
    pub kernel_from: Option<&'a Manifest>,
}

/// A disk that is ready to be an image: files of the work directory, which the store adopts.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// What it is, for people.
    pub os: String,
    /// What was given.
    pub format: Format,
    /// A qcow2 file on nothing.
    pub disk: PathBuf,
    /// Of the disk, in bytes.
    pub size: u64,
    /// The kernel and its initial RAM disk from the disk; `None`: take those of [`Options::kernel_from`].
    pub kernel: Option<(PathBuf, Option<PathBuf>)>,
    /// For the kernel, but for its console.
    pub cmdline: String,
    /// How the agent runs in it.
    pub agent: Agent,
    /// What the user should know, such as why the agent was not put in.
    pub notes: Vec<String>,
}

/// The format of the file at `path`, which may be compressed, by its content; `None` if it is no disk that is read here. A tar archive can
/// look like none of them.
///
/// # Errors
/// If it cannot be read, or is a disk of a format that is known and not read.
pub fn recognise(path: &Path) -> Result<Option<Format>, DiskError> {
    let file = recognise::open(path)?;
    let head = recognise::head(&file).map_err(read_failed(path))?;
    recognise::format(&head, path)
}

/// Make an image of the disk at `path`. It is in the store then, without a name; it says its manifest and what the user should know.
///
/// # Errors
/// As for [`prepare`], or if the store fails.
pub fn import(
    store: &Store,
    path: &Path,
    options: &Options<'_>,
    progress: &mut dyn Progress,
) -> Result<(Manifest, Vec<String>), DiskError> {
    let failed = |source: StoreError| DiskError::Other {
        what: format!("the disk {} cannot be kept", path.display()),
        source: Box::new(source),
    };
    let scratch = store.scratch().map_err(failed)?;
    let prepared = prepare(path, scratch.path(), options, progress)?;
    progress.step("adding it to the store");
    let total = prepared.disk.metadata().map_or(0, |metadata| metadata.len());
    let disk =
        store.adopt(&prepared.disk, None, &mut |done| progress.advance(done, Some(total))).map_err(failed)?;
    let mut keep = |path: &PathBuf| store.adopt(path, None, &mut |_| ()).map_err(failed);
    let (kernel, initrd, modules) = match (&prepared.kernel, options.kernel_from) {
        (Some((kernel, initrd)), _) => (keep(kernel)?, initrd.as_ref().map(&mut keep).transpose()?, None),
        (None, Some(image)) => (image.kernel, image.initrd, image.modules),
        (None, None) => return Err(no_kernel(path)),
    };
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let manifest = Manifest {
        schema: SCHEMA,
        os: prepared.os,
        created_ms: u64::try_from(created.as_millis()).unwrap_or(u64::MAX),
        source: manifest::Source::Disk { format: prepared.format.name().to_owned() },
        kernel,
        initrd,
        modules,
        cmdline: prepared.cmdline,
        disk: Disk { layers: vec![disk], size: prepared.size, grows_to: prepared.size },
        agent: prepared.agent,
        defaults: Defaults::default(),
    };
    Ok((manifest, prepared.notes))
}

/// Make what an image needs of the disk at `path`, in the directory `work`, which is private and empty.
///
/// # Errors
/// If it is no disk, cannot be trusted, has no system that can be started, or the host fails.
pub fn prepare(
    path: &Path,
    work: &Path,
    options: &Options<'_>,
    progress: &mut dyn Progress,
) -> Result<Prepared, DiskError> {
    let (mut source, format) = open(path, work, progress)?;
    let raw = work.join("raw");
    progress.step(&format!("reading the {} disk", format.name()));
    let written = raw::write(&mut *source, &raw, &mut |done, total| progress.advance(done, Some(total)));
    let file = written.map_err(copy_failed(path, &raw))?;
    drop(source);
    progress.step("looking for the system on it");
    let mut volumes = system::volumes(&file, path)?;
    for volume in &mut volumes {
        if let FileSystem::Ext { unclean: unclean @ true } = &mut volume.kind {
            *unclean = false;
            replay(&raw, &file, volume, work)?;
        }
    }
    let system = system::find(&raw, &volumes, path)?;
    let kernel = match (&options.kernel_from, &system.boot) {
        (Some(_), _) => None,
        (None, Some(boot)) => Some(system::extract(&raw, boot, work, path)?),
        (None, None) => return Err(no_kernel(path)),
    };
    let mut notes = Vec::new();
    let agent = put_agent(&raw, &system, options, &mut notes)?;
    progress.step("writing the disk");
    let disk = work.join("disk");
    let mut copy = Raw::new(file).map_err(read_failed(&raw))?;
    let size = copy.size();
    let mut room = Room::new(work);
    let mut tell = |done: u64, total: u64| {
        progress.advance(done, Some(total));
        room.check(done)
    };
    layer::pack(&HostStorage, &mut copy, &disk, &mut tell)?;
    // Nobody needs it any more, and it may be large.
    fs::remove_file(&raw).map_err(write_failed(&raw))?;
    let mode = if system.readonly_first { "ro" } else { "rw" };
    Ok(Prepared {
        os: system.os.clone().unwrap_or_else(|| "Linux".to_owned()),
        format,
        disk,
        size,
        kernel,
        cmdline: format!("root={} {mode}", system.root.root()),
        agent,
        notes,
    })
}

/// Replay a file system's journal, as its guest would at its next start. e2fsck does so only to a file system that is a whole file.
fn replay(raw: &Path, file: &File, volume: &Volume, work: &Path) -> Result<(), DiskError> {
    let failed = || system::ext4_failed("replaying the journal of a file system on the disk");
    let Some(partition) = &volume.partition else { return ext4::replay(raw).map_err(failed()) };
    let part = work.join("partition");
    let read = || Raw::part(file.try_clone()?, partition.start, partition.len);
    let copied = read().and_then(|mut content| raw::write(&mut content, &part, &mut |_, _| ()));
    copied.map_err(copy_failed(raw, &part))?;
    ext4::replay(&part).map_err(failed())?;
    let put = File::open(&part).and_then(Raw::new);
    let put = put.and_then(|mut content| raw::replace(&mut content, file, partition.start, work));
    put.and_then(|()| fs::remove_file(&part)).map_err(copy_failed(&part, raw))
}

fn no_kernel(path: &Path) -> DiskError {
    let reason =
        "it has no kernel in an ext4 file system: take that of another image with --kernel-from IMAGE";
    DiskError::System { path: path.to_owned(), reason: reason.to_owned() }
}

/// What a file holds, unpacked into `work` first if it is compressed.
fn open(
    path: &Path,
    work: &Path,
    progress: &mut dyn Progress,
) -> Result<(Box<dyn Source>, Format), DiskError> {
    let mut file = recognise::open(path)?;
    let mut place = path.to_owned();
    let mut head = recognise::head(&file).map_err(read_failed(path))?;
    if compress::Format::of(&head) != compress::Format::None {
        progress.step("unpacking the disk");
        place = work.join("unpacked");
        file = unpack(file, path, &place, progress)?;
        head = recognise::head(&file).map_err(read_failed(path))?;
    }
    let format = recognise::format(&head, path)?.ok_or_else(|| DiskError::System {
        path: path.to_owned(),
        reason: "it is no qcow2, vmdk or vhdx file, and has neither a partition table nor a file system"
            .to_owned(),
    })?;
    let source: Box<dyn Source> = match format {
        Format::Raw => Box::new(Raw::new(file).map_err(read_or_malformed(path))?),
        // A name of its own is opened again: what is unpacked is private, and what is not is the user's.
        Format::Qcow2 => Box::new(Content::open_alone(&HostStorage, &place)?),
        Format::Vmdk => vmdk::open(file, path).map_err(read_or_malformed(path))?,
        Format::Vhdx => Box::new(vhdx::Vhdx::open(file).map_err(read_or_malformed(path))?),
    };
    if source.size() > MAX_SIZE {
        let source = Malformed::TooLarge { size: source.size(), most: MAX_SIZE };
        return Err(DiskError::Image { path: path.to_owned(), source });
    }
    Ok((source, format))
}

/// Unpack a compressed file, with holes where it has zeroes.
fn unpack(file: File, path: &Path, out: &Path, progress: &mut dyn Progress) -> Result<File, DiskError> {
    let total = file.metadata().map_or(0, |metadata| metadata.len());
    let counted = file.try_clone().map_err(read_failed(path))?;
    let reader = compress::Reader::new(file).map_err(read_failed(path))?;
    let told = |progress: &mut dyn Progress| {
        // How far the packed file has been read is how far it is.
        let at = rustix::fs::tell(&counted).unwrap_or(0);
        progress.advance(at.min(total), Some(total));
    };
    raw::unpack(reader, out, &mut || told(progress)).map_err(copy_failed(path, out))
}

/// Put the agent's files in, or say why not.
fn put_agent(
    raw: &Path,
    system: &System,
    options: &Options<'_>,
    notes: &mut Vec<String>,
) -> Result<Agent, DiskError> {
    let Some(program) = options.agent else { return Ok(Agent::None) };
    if system.os.is_none() {
        let kind = system.root.kind.name();
        notes.push(format!("the agent was not put in: files of {kind} cannot be written; skiff agent FILE makes it, for a copy by hand"));
        return Ok(Agent::None);
    }
    let (items, how) = match system.systemd {
        true => (install::SYSTEMD, Agent::Service),
        false => (install::PROGRAM_ONLY, Agent::None),
    };
    if !system.systemd {
        let path = install::PROGRAM_PATH;
        notes.push(format!("the guest has no systemd: let its own init start {path}, run it with --vsock auto, and skiff exec works"));
    }
    // A list names no directory that every guest of its kind has.
    let parent = |item: &Item| {
        let (path, _) = item.path.rsplit_once('/').unwrap_or_default();
        Change::Directory { path: path.to_owned() }
    };
    let changes: Vec<Change> = items.iter().flat_map(|item| [parent(item), change(item, program)]).collect();
    let files = Debugfs::open(raw, system.root.start, true);
    let put = files.and_then(|files| files.edit(&changes));
    put.map_err(system::ext4_failed("putting the agent into the disk (--no-agent leaves it out)"))?;
    Ok(how)
}

fn change(item: &Item, program: &[u8]) -> Change {
    let path = item.path.to_owned();
    match item.kind {
        Kind::Dir => Change::Directory { path },
        Kind::Program => Change::File { path, mode: 0o755, content: program.to_vec() },
        Kind::Text(text) => Change::File { path, mode: 0o644, content: text.as_bytes().to_vec() },
        Kind::Link(target) => Change::Symlink { path, target: target.to_owned() },
    }
}
