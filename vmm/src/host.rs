//! What a VM holds of its host: everything its spec names, opened once, before anything is built.
//!
//! It lives as long as the VM and survives reboots of the guest: a disk stays locked, a console stays connected, and a
//! kernel file that was replaced on disk stays the one that was asked for.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::disk::engine::probe_uring;
use devices::disk::{Disk, DiskOptions};
use devices::limit::Limiter;
use devices::virtio::balloon::BalloonControl;
use devices::virtio::fs::{Folder, Owners, TooFewDescriptors};
use devices::virtio::vsock::VsockListener;

use crate::console::{Console, Hub, Sink};
use crate::counting::DeviceCounters;
use crate::error::VmError;
use crate::home::{Home, HomeError, Lineage};
use crate::kvm::Hypervisor;
use crate::machine::Point;
use crate::memory;
use crate::net::{self, Network};
use crate::snapshot::Id;
use crate::snapshot::store::Pin;
use crate::spec::{DiskIo, DiskSpec, FolderSpec, Stream, VmSpec, VsockSpec};
use crate::vcpu::VcpuCounters;

/// The largest kernel file that is read.
const MAX_KERNEL: u64 = 1 << 30;

/// A file of the spec cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// There is nothing.
    #[error(
        "the {what} {path} does not exist: check the path; a system's own kernels and initrds are in /boot"
    )]
    Missing {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// As it was given.
        path: String,
    },
    /// It may not be read.
    #[error("no permission to read the {what} {path}: change its mode (sudo chmod a+r {path}), or copy it")]
    Permission {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// As it was given.
        path: String,
    },
    /// It cannot be opened or read.
    #[error("cannot read the {what} {path}: check the path and its permissions")]
    Read {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// As it was given.
        path: String,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// It is a directory, a device or the like.
    #[error("the {what} {path} is not a regular file: give the path of the file itself")]
    NotAFile {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// As it was given.
        path: String,
    },
    /// There is no such folder.
    #[error("the folder {path} does not exist: make it (mkdir -p {path}), or check the path")]
    NoFolder {
        /// As it was given.
        path: String,
    },
    /// It is a file or the like.
    #[error("{path} is no folder: share the folder that it is in, or copy it with skiff cp")]
    NotAFolder {
        /// As it was given.
        path: String,
    },
    /// It cannot be opened.
    #[error("cannot share the folder {path}: check that you may read it (ls {path})")]
    Folder {
        /// As it was given.
        path: String,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// All folders together need more open files than there can be.
    #[error(transparent)]
    Descriptors(#[from] TooFewDescriptors),
    /// io_uring was insisted on and cannot be had.
    #[error(
        "the disk {path} asks for io=uring, which this host does not allow: leave io= out, or enable io_uring (sysctl kernel.io_uring_disabled=0)"
    )]
    NoUring {
        /// As it was given.
        path: String,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// It is too large to be a kernel.
    #[error("the kernel {path} is larger than 1 GiB: is it a disk?")]
    TooLarge {
        /// As it was given.
        path: String,
    },
}

/// The host's side of one disk.
pub(crate) struct HostDisk {
    pub(crate) disk: Arc<Disk>,
    /// Here and not with the device, so that a reboot fills no bucket.
    pub(crate) limiter: Option<Arc<Limiter>>,
}

/// Whose the host's side is.
pub(crate) struct Place<'a> {
    /// The VM's name.
    pub(crate) name: &'a str,
    /// Its own directory.
    pub(crate) dir: Option<&'a Path>,
    /// What it keeps for later.
    pub(crate) home: Option<&'a Home>,
}

/// The host's side of one VM.
pub(crate) struct Host {
    pub(crate) spec: VmSpec,
    pub(crate) hypervisor: Hypervisor,
    pub(crate) disks: Vec<HostDisk>,
    pub(crate) nets: Vec<Network>,
    pub(crate) folders: Vec<Arc<Folder>>,
    pub(crate) serial: Sink,
    pub(crate) console_sink: Sink,
    pub(crate) console: Arc<Console>,
    pub(crate) counters: DeviceCounters,
    pub(crate) balloon: Option<BalloonControl>,
    pub(crate) vcpu_counters: Vec<Arc<VcpuCounters>>,
    /// Where the host's programs reach the guest by vsock.
    pub(crate) vsock: Option<Arc<VsockListener>>,
    /// What it keeps for later.
    pub(crate) lineage: Option<Lineage>,
    /// Opened when it is first asked for, in a VM that starts from a snapshot: it may never be.
    kernel: Option<File>,
    initrd: Option<File>,
}

impl Host {
    /// Open everything that the spec of the VM at `place` names. Its streams that are called `stdio` lead to the hub of that name.
    /// A VM that starts from a snapshot needs no kernel before its guest is reset.
    ///
    /// # Errors
    /// The first thing that cannot be used, named.
    pub(crate) fn open(
        spec: VmSpec,
        place: &Place,
        stdio: Hub,
        from: Option<Id>,
    ) -> Result<(Self, Option<Point>), VmError> {
        let (kernel, initrd) = match from.is_some() {
            true => (None, None),
            false => {
                let initrd = spec.initrd.as_deref().map(|path| open("initrd", path)).transpose()?;
                (Some(open("kernel", &spec.kernel)?), initrd)
            }
        };
        memory::check(&spec.memory)?;
        let folders = spec.folders.iter().map(open_folder).collect::<Result<_, _>>()?;
        survive_file_size_limits();
        let Settled { lineage, point, pin } = settle(&spec, place.home, from)?;
        let disks = open_disks(&spec, lineage.as_ref())?;
        drop(pin);
        let nets = net::open_all(&spec, place.name)?;
        let hypervisor = Hypervisor::open()?;
        hypervisor.check_cpus(spec.cpus)?;
        let serial = Sink::open(&spec.serial)?;
        let console_sink = Sink::open(&spec.console)?;
        let has_stdio = spec.serial == Stream::Stdio || spec.console == Stream::Stdio;
        let console = Arc::new(Console::new(stdio, has_stdio));
        let balloon = spec.balloon.then(BalloonControl::new).transpose();
        let balloon = balloon.map_err(VmError::resources("make an eventfd"))?;
        let vsock = spec.vsock.as_ref().map(|vsock| open_vsock(vsock, place.dir)).transpose()?;
        let host = Self {
            hypervisor,
            disks,
            nets,
            folders,
            serial,
            console_sink,
            console,
            counters: DeviceCounters::default(),
            balloon,
            vcpu_counters: (0..spec.cpus).map(|_| Arc::default()).collect(),
            vsock,
            lineage,
            kernel,
            initrd,
            spec,
        };
        Ok((host, point))
    }

    /// The VM is on the snapshot `id` from now on, durably.
    ///
    /// # Errors
    /// If the host fails.
    pub(crate) fn is_on(&mut self, id: Id) -> Result<(), VmError> {
        let lineage = self.lineage.as_mut().ok_or(VmError::NoHome)?;
        let mut record = lineage.record().clone();
        record.parent = Some(id);
        lineage.change(record)?;
        Ok(())
    }

    /// Let the devices that are made from now on have these disks. No bucket is filled. What was written to the tops of the old ones is
    /// of no use to anybody: nobody waits for it.
    pub(crate) fn put_disks(&mut self, disks: Vec<HostDisk>) {
        for (mine, new) in self.disks.iter_mut().zip(disks) {
            mine.disk.abandon();
            mine.disk = new.disk;
        }
    }

    /// The first disk that can be written and has no layers, so that it cannot be frozen.
    pub(crate) fn written_in_place(&self) -> Option<String> {
        let at = self.spec.disks.iter().position(DiskSpec::in_place)?;
        Some(format!("disk{at}"))
    }

    /// The kernel file's bytes.
    pub(crate) fn read_kernel(&self) -> Result<Vec<u8>, HostError> {
        let path = || self.spec.kernel.display().to_string();
        let failed = |source| HostError::Read { what: "kernel", path: path(), source };
        let opened;
        let mut file = match &self.kernel {
            Some(file) => file,
            None => {
                opened = open("kernel", &self.spec.kernel)?;
                &opened
            }
        };
        let len = file.metadata().map_err(failed)?.len();
        if len > MAX_KERNEL {
            return Err(HostError::TooLarge { path: path() });
        }
        file.rewind().map_err(failed)?;
        // One read of a file whose length is known; what grows meanwhile is left out.
        let mut bytes = Vec::with_capacity(len as usize);
        file.take(len).read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    /// The initrd, at its start, and its length in bytes.
    pub(crate) fn initrd(&self) -> Result<Option<(File, u64)>, HostError> {
        let Some(path) = &self.spec.initrd else { return Ok(None) };
        let failed = |source| HostError::Read { what: "initrd", path: path.display().to_string(), source };
        let mut file = match &self.initrd {
            Some(file) => file.try_clone().map_err(failed)?,
            None => open("initrd", path)?,
        };
        file.rewind().map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        Ok(Some((file, len)))
    }
}

fn open(what: &'static str, path: &Path) -> Result<File, HostError> {
    let shown = || path.display().to_string();
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => HostError::Missing { what, path: shown() },
        io::ErrorKind::PermissionDenied => HostError::Permission { what, path: shown() },
        _ => HostError::Read { what, path: shown(), source },
    };
    // A fifo would block the open itself.
    if !path.metadata().map_err(failed)?.is_file() {
        return Err(HostError::NotAFile { what, path: shown() });
    }
    File::open(path).map_err(failed)
}

/// A write beyond `ulimit -f` is an error of that write, as one to a full file system is, and not the end of the process.
fn survive_file_size_limits() {
    // SAFETY: to ignore a signal runs nothing in this process.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// A VM's place among snapshots.
#[derive(Default)]
struct Settled {
    lineage: Option<Lineage>,
    /// The one that it is to start from.
    point: Option<Point>,
    /// No layer goes before this does: a chain is opened file by file.
    pin: Option<Pin>,
}

/// Find the VM's place among snapshots, open the one that it is to start from, and make the layers that its disks lack.
fn settle(spec: &VmSpec, home: Option<&Home>, from: Option<Id>) -> Result<Settled, VmError> {
    let Some(home) = home else {
        return if from.is_some() { Err(HomeError::Homeless.into()) } else { Ok(Settled::default()) };
    };
    let mut lineage = Lineage::open(home, spec.disks.len())?;
    let Some(id) = from else {
        if !spec.disks.iter().any(DiskSpec::is_layered) {
            return Ok(Settled { lineage: Some(lineage), ..Settled::default() });
        }
        let pin = lineage.store.pin()?;
        let record = lineage.first_tops(&spec.disks)?;
        if record != *lineage.record() {
            lineage.change(record)?;
        }
        return Ok(Settled { lineage: Some(lineage), point: None, pin: Some(pin) });
    };
    let pin = lineage.store.pin()?;
    let point = Point::open(&lineage.store, id)?;
    point.fits(spec)?;
    lineage.start_on(&spec.disks, &point.manifest)?;
    Ok(Settled { lineage: Some(lineage), point: Some(point), pin: Some(pin) })
}

/// The disks: each layered one by its top.
pub(crate) fn open_disks(spec: &VmSpec, lineage: Option<&Lineage>) -> Result<Vec<HostDisk>, VmError> {
    let file = |at, disk: &DiskSpec| match lineage {
        Some(lineage) => lineage.file(at, disk).into_owned(),
        None => disk.path.clone(),
    };
    spec.disks.iter().enumerate().map(|(at, disk)| open_disk(disk, file(at, disk))).collect()
}

fn open_disk(disk: &DiskSpec, path: PathBuf) -> Result<HostDisk, VmError> {
    if disk.io == DiskIo::Uring {
        // The device asks again when its driver starts it, but then only the log could tell.
        let failed = |source| HostError::NoUring { path: disk.path.display().to_string(), source };
        probe_uring().map_err(failed)?;
    }
    let options = DiskOptions { path, readonly: disk.readonly, direct: disk.direct };
    Ok(HostDisk { disk: Arc::new(Disk::open(&options)?), limiter: Limiter::new(disk.limit.limits()) })
}

/// The folder that is shared, wherever it is moved from here on.
fn open_folder(spec: &FolderSpec) -> Result<Arc<Folder>, HostError> {
    let Some(path) = &spec.path else { return empty_folder().map(Arc::new) };
    let shown = || path.display().to_string();
    let folder = Folder::open(path, spec.readonly, Owners::of_process(spec.owner));
    folder.map(Arc::new).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => HostError::NoFolder { path: shown() },
        io::ErrorKind::NotADirectory => HostError::NotAFolder { path: shown() },
        _ => HostError::Folder { path: shown(), source },
    })
}

/// A folder that nobody else can find, with nothing in it, where nothing can be made.
fn empty_folder() -> Result<Folder, HostError> {
    let parent = std::env::temp_dir();
    let failed = |source| HostError::Folder { path: parent.display().to_string(), source };
    let path = parent.join(format!("skiff-empty-{}", Id::draw().map_err(failed)?));
    std::fs::create_dir(&path).map_err(failed)?;
    let folder = Folder::open(&path, true, Owners::of_process(None)).map_err(failed);
    std::fs::remove_dir(&path).map_err(failed)?;
    folder
}

fn open_vsock(spec: &VsockSpec, dir: Option<&Path>) -> Result<Arc<VsockListener>, VmError> {
    let own;
    let path = match (&spec.path, dir) {
        (Some(path), _) => path,
        (None, Some(dir)) => {
            own = dir.join(VsockSpec::OWN);
            &own
        }
        (None, None) => return Err(VmError::NoPlace),
    };
    Ok(Arc::new(VsockListener::bind(path)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_what_to_do() {
        let text = |path: &str| open("kernel", Path::new(path)).unwrap_err().to_string();
        assert!(
            text("/nonexistent/vmlinuz").starts_with("the kernel /nonexistent/vmlinuz does not exist: check")
        );
        assert!(text("/dev/null").ends_with("give the path of the file itself"));
        assert!(text("/").contains("not a regular file"));
    }
}
