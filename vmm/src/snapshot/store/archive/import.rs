//! Reading an archive, which may hold anything.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use super::super::super::envelope;
use super::super::super::manifest::{self, DiskPoint, Manifest, MemoryFiles, Sum};
use super::super::super::memory::{Index, PAGE};
use super::super::super::sealed::{self, SealedError};
use super::super::super::{Id, state};
use super::super::{Draft, Progress, Store, StoreError, contents};
use super::export::data_runs;
use super::room::Room;
use super::{
    ArchiveError, CHUNK, CONTENTS, Contents, EntrySum, FORMAT, INDEX, INITRD, KERNEL, MEMORY, MIB, STATE,
    disk_entry, read_spec,
};
use crate::spec::{NetBackend, Stream, VmSpec};

/// The longest list of contents in bytes.
const MOST_CONTENTS: u64 = 1 << 20;
/// The longest state in bytes but for shared folders: that of 64 vCPUs with all their devices has about 4 MiB.
const MOST_STATE: u64 = 64 * MIB;
/// What each shared folder may add: the paths of all that a guest can know of one.
const MOST_FOLDER: u64 = 320 * MIB;
/// The longest index in bytes but for its runs.
const MOST_INDEX: u64 = MIB;
/// What a run takes in an index, in bytes.
const RUN: u64 = 16;
/// The most zeros behind the last entry: tar pads to 10 KiB, and some to more.
const MOST_PADDING: u64 = 1 << 20;

/// A snapshot that was read from a file and is not there for users yet. Dropped without [`Import::commit`], all of it is gone.
#[derive(Debug)]
pub struct Import {
    store: Store,
    draft: Option<Draft>,
    manifest: Manifest,
    /// What the VM was called where it comes from. Not checked.
    pub vm: String,
    /// What the VM is here. Its vsock is in its own directory.
    pub spec: VmSpec,
    /// Files that lie in the draft until they are named: from, to.
    staged: Vec<(PathBuf, PathBuf)>,
    /// Those that are named.
    made: Vec<PathBuf>,
}

/// Where entries come from.
struct Reader<'a, R: Read> {
    path: String,
    entries: tar::Entries<'a, R>,
    progress: Progress<'a>,
    done: u64,
    total: u64,
    room: Room<'a>,
}

impl Store {
    /// Read the archive at `from` whole, and check it. Nothing of it can be seen until [`Import::commit`].
    ///
    /// # Errors
    /// If it is no archive, damaged, newer, of another processor, there is no room for it, or the host fails.
    pub fn import(&self, from: &Path, progress: Progress<'_>) -> Result<Import, ArchiveError> {
        let path = from.display().to_string();
        let failed = || ArchiveError::io(format!("read {path}"));
        let file = File::open(from).map_err(failed())?;
        if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return Err(failed()(io::ErrorKind::IsADirectory.into()));
        }
        let decoder = zstd::Decoder::new(BufReader::new(file)).map_err(failed())?;
        let mut archive = tar::Archive::new(decoder);
        // As they are: the library would read a name of any length into memory.
        let entries = archive.entries().map_err(failed())?.raw(true);
        let room = Room::new(self, path.clone());
        let mut reader = Reader { path: path.clone(), entries, progress, done: 0, total: 0, room };
        let contents = reader.contents()?;
        let import = self.read_in(contents, &mut reader)?;
        reader.end()?;
        drop(reader);
        finish(archive.into_inner())
            .map_err(|error| ArchiveError::Damaged { path, why: error.to_string() })?;
        Ok(import)
    }

    fn read_in<R: Read>(
        &self,
        contents: Contents,
        reader: &mut Reader<'_, R>,
    ) -> Result<Import, ArchiveError> {
        let id = Id::draw().map_err(ArchiveError::io("name a snapshot"))?;
        let spec = read_spec(&contents.spec).map_err(|why| reader.damaged(format!("its spec: {why}")))?;
        if contents.disks.len() != spec.disks.len() {
            return Err(reader.damaged("it has not the disks of its spec"));
        }
        let draft = self.begin(id, None)?;
        reader.room.announce(reader.total)?;
        let (most_state, most_index) = (most_state(&spec), most_index(&spec));
        let manifest = blank(id, &contents);
        let mut import = Import {
            store: self.clone(),
            draft: Some(draft),
            manifest,
            vm: contents.vm.clone(),
            spec,
            staged: Vec::new(),
            made: Vec::new(),
        };
        let dir = self.places().draft(id);
        let mut wanted = contents.entries.iter();
        let mut next = |name: &str, most: u64, reader: &Reader<'_, R>| -> Result<EntrySum, ArchiveError> {
            let entry = wanted.next().filter(|entry| entry.name == name).cloned();
            let entry = entry.ok_or_else(|| reader.damaged(format!("{name} is not where it must be")))?;
            if entry.sum.len > most {
                let len = entry.sum.len;
                return Err(reader.damaged(format!("{name} has {len} bytes, and {most} are the most")));
            }
            Ok(entry)
        };
        let entry = next(STATE, most_state, reader)?;
        import.take(reader, entry, &dir.join(state::STATE), state::STATE)?;
        let entry = next(INDEX, most_index, reader)?;
        import.take(reader, entry, &dir.join(INDEX), INDEX)?;
        let index = Index::read(self.storage(), &dir.join(INDEX))
            .map_err(|error| reader.damaged(error.to_string()))?;
        let entry = next(MEMORY, u64::MAX, reader)?;
        import.take_memory(reader, entry, &dir.join(MEMORY), &index)?;
        for (number, size) in contents.disks.iter().enumerate() {
            let entry = next(&disk_entry(number), u64::MAX, reader)?;
            import.take_disk(reader, entry, number, *size)?;
        }
        let entry = next(KERNEL, u64::MAX, reader)?;
        import.spec.kernel = import.take_boot(reader, entry, KERNEL)?;
        if import.spec.initrd.is_some() {
            let entry = next(INITRD, u64::MAX, reader)?;
            import.spec.initrd = Some(import.take_boot(reader, entry, INITRD)?);
        }
        if wanted.next().is_some() {
            return Err(reader.damaged("it has more than belongs to a snapshot"));
        }
        make_harmless(&mut import.spec);
        Ok(import)
    }
}

/// Read what follows the last entry, which is padding: a stream that was cut short, or whose checksum is wrong, says so only at its
/// very end.
fn finish(mut rest: impl Read) -> io::Result<()> {
    let mut padding = Vec::new();
    rest.by_ref().take(MOST_PADDING).read_to_end(&mut padding)?;
    if rest.read(&mut [0])? > 0 || padding.iter().any(|byte| *byte != 0) {
        return Err(io::Error::other("more follows than belongs to it"));
    }
    Ok(())
}

/// How long the state of such a VM can be, in bytes: it is read whole.
fn most_state(spec: &VmSpec) -> u64 {
    let folders = MOST_FOLDER.saturating_mul(spec.folders.len() as u64);
    MOST_STATE.saturating_add(folders).min(envelope::MOST)
}

/// How long the index of such a VM's memory can be, in bytes: it is read whole, and has no more runs than the memory has pages.
fn most_index(spec: &VmSpec) -> u64 {
    let runs = (spec.memory.size.0 / PAGE).saturating_mul(RUN);
    MOST_INDEX.saturating_add(runs).min(envelope::MOST)
}

/// The manifest before its files are there.
fn blank(id: Id, contents: &Contents) -> Manifest {
    Manifest {
        format: manifest::FORMAT,
        arch: contents.arch.clone(),
        id,
        vm: id,
        name: contents.name.clone(),
        parent: None,
        created_ms: contents.created_ms,
        comment: contents.comment.chars().filter(|c| !c.is_control()).collect(),
        removed: false,
        spec: String::new(),
        memory: MemoryFiles { data: MEMORY.to_owned(), index: INDEX.to_owned(), base: None },
        disks: Vec::new(),
        pause_us: contents.pause_us,
        files: Default::default(),
    }
}

/// Take out of a stranger's spec what names places on the host; but for taps, which its guest has agreed on features with, and of which
/// whoever imports it is told.
fn make_harmless(spec: &mut VmSpec) {
    spec.ports.clear();
    for disk in spec.disks.iter_mut().filter(|disk| !disk.readonly) {
        // The file that it gets is the snapshot's, which nobody writes.
        disk.layers = Some(true);
    }
    for stream in [&mut spec.serial, &mut spec.console] {
        if matches!(stream, Stream::File(_)) {
            *stream = Stream::Null;
        }
    }
    if let Some(vsock) = &mut spec.vsock {
        vsock.path = None;
    }
    for folder in &mut spec.folders {
        folder.path = None;
    }
    for net in &mut spec.nets {
        net.mac = None;
        if let NetBackend::Fd(_) = net.backend {
            // A user network has one queue.
            (net.backend, net.queues) = (NetBackend::User, None);
        }
    }
}

impl<R: Read> Reader<'_, R> {
    fn damaged(&self, why: impl Into<String>) -> ArchiveError {
        ArchiveError::Damaged { path: self.path.clone(), why: why.into() }
    }

    /// What reading it came to: a host that fails cannot be told from a file that ends.
    fn broken(&self, error: &io::Error) -> ArchiveError {
        self.damaged(error.to_string())
    }

    fn contents(&mut self) -> Result<Contents, ArchiveError> {
        let mut entry = next(&mut self.entries, &self.path, CONTENTS)?;
        let (long, mut text) = (entry.size() > MOST_CONTENTS, Vec::new());
        if !long {
            let read = entry.read_to_end(&mut text);
            drop(entry);
            read.map_err(|error| self.broken(&error))?;
        }
        if long {
            return Err(self.damaged("its list of contents is far too long"));
        }
        let contents: Contents = match sealed::unseal(&text, FORMAT) {
            Ok(contents) => contents,
            Err(SealedError::Newer { found, .. }) => {
                return Err(ArchiveError::Newer { path: self.path.clone(), found });
            }
            Err(error) => return Err(self.damaged(error.to_string())),
        };
        let here = std::env::consts::ARCH;
        if contents.arch != here {
            return Err(ArchiveError::Arch { path: self.path.clone(), found: contents.arch, here });
        }
        self.total = contents.entries.iter().fold(0, |sum: u64, entry| sum.saturating_add(entry.sum.len));
        Ok(contents)
    }

    /// Read the entry `wanted` and check it. `write` is given piece after piece.
    fn read(
        &mut self,
        wanted: &EntrySum,
        mut write: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ArchiveError> {
        let path = &self.path;
        let damaged = |why: String| ArchiveError::Damaged { path: path.clone(), why };
        let mut entry = next(&mut self.entries, path, &wanted.name)?;
        if entry.size() != wanted.sum.len {
            return Err(damaged(format!("{} has another length than it says", wanted.name)));
        }
        let (mut hasher, mut left, mut buffer) = (crc32fast::Hasher::new(), wanted.sum.len, vec![0; CHUNK]);
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let part = buffer.get_mut(..most).unwrap_or_default();
            entry.read_exact(part).map_err(|error| damaged(error.to_string()))?;
            hasher.update(part);
            self.room.spend(most as u64)?;
            write(part).map_err(ArchiveError::io(format!(
                "unpack {} of {path} into the data directory",
                wanted.name
            )))?;
            left = left.saturating_sub(most as u64);
            self.done = self.done.saturating_add(most as u64);
            (self.progress)(self.done, self.total);
        }
        if hasher.finalize() != wanted.sum.crc32 {
            return Err(damaged(format!("the checksum of {} is wrong", wanted.name)));
        }
        Ok(())
    }

    /// Nothing may follow.
    fn end(&mut self) -> Result<(), ArchiveError> {
        match self.entries.next() {
            None => Ok(()),
            Some(Ok(_)) => Err(self.damaged("it has more than it says")),
            Some(Err(error)) => Err(self.broken(&error)),
        }
    }
}

/// The next entry, which must be the plain file `name`.
fn next<'b, R: Read>(
    entries: &mut tar::Entries<'b, R>,
    path: &str,
    name: &str,
) -> Result<tar::Entry<'b, R>, ArchiveError> {
    let damaged = |why: String| ArchiveError::Damaged { path: path.to_owned(), why };
    let entry = match entries.next() {
        Some(entry) => entry.map_err(|error| damaged(error.to_string()))?,
        None => return Err(damaged(format!("it ends before {name}"))),
    };
    let plain = entry.header().entry_type() == tar::EntryType::Regular;
    if !plain || *entry.path_bytes() != *name.as_bytes() {
        return Err(damaged(format!("{name} is not where it must be")));
    }
    Ok(entry)
}

impl Import {
    /// A small or large file as it is.
    fn take<R: Read>(
        &mut self,
        reader: &mut Reader<'_, R>,
        wanted: EntrySum,
        to: &Path,
        name: &str,
    ) -> Result<(), ArchiveError> {
        self.write(reader, &wanted, to)?;
        self.manifest.files.insert(name.to_owned(), wanted.sum);
        Ok(())
    }

    fn write<R: Read>(
        &self,
        reader: &mut Reader<'_, R>,
        wanted: &EntrySum,
        to: &Path,
    ) -> Result<(), ArchiveError> {
        let failed = || ArchiveError::io(format!("write {}", to.display()));
        let file = self.store.storage().create(to).map_err(failed())?;
        let mut at = 0_u64;
        file.set_len(wanted.sum.len).map_err(failed())?;
        reader.read(wanted, |part| {
            // What unpacks to endless zeros is not to fill the disk.
            if part.iter().any(|byte| *byte != 0) {
                file.write_all_at(part, at)?;
            }
            at = at.saturating_add(part.len() as u64);
            Ok(())
        })?;
        file.sync().map_err(failed())
    }

    /// The pages, each at its place.
    fn take_memory<R: Read>(
        &mut self,
        reader: &mut Reader<'_, R>,
        wanted: EntrySum,
        to: &Path,
        index: &Index,
    ) -> Result<(), ArchiveError> {
        if (wanted.sum != Sum { len: index.stored(), crc32: index.crc32() }) {
            return Err(reader.damaged("its memory is not what its index says"));
        }
        let failed = || ArchiveError::io(format!("write {}", to.display()));
        let file = self.store.storage().create(to).map_err(failed())?;
        file.set_len(index.size()).map_err(failed())?;
        let mut runs = data_runs(index).into_iter();
        let (mut at, mut left) = (0_u64, 0_u64);
        reader.read(&wanted, |mut part| {
            while !part.is_empty() {
                if left == 0 {
                    (at, left) = runs.next().ok_or(io::ErrorKind::InvalidData)?;
                }
                let len = usize::try_from(left).unwrap_or(usize::MAX).min(part.len());
                let (now, later) = part.split_at(len);
                file.write_all_at(now, at)?;
                at = at.saturating_add(len as u64);
                left = left.saturating_sub(len as u64);
                part = later;
            }
            Ok(())
        })?;
        file.sync().map_err(failed())?;
        let sum = Sum { len: index.size(), crc32: index.crc32() };
        self.manifest.files.insert(MEMORY.to_owned(), sum);
        Ok(())
    }

    /// A disk: a layer without another below it, or for one that only can be read, a base.
    fn take_disk<R: Read>(
        &mut self,
        reader: &mut Reader<'_, R>,
        wanted: EntrySum,
        number: usize,
        size: u64,
    ) -> Result<(), ArchiveError> {
        let layer = Id::draw().map_err(ArchiveError::io("name a layer"))?;
        let Some(readonly) = self.spec.disks.get(number).map(|disk| disk.readonly) else { return Ok(()) };
        let places = self.store.places();
        let path = if readonly { places.boot().join(layer.to_string()) } else { places.layer(layer) };
        let to = self.stage(reader, &wanted, path.clone())?;
        contents::check_alone(self.store.storage(), &to, size).map_err(|why| reader.damaged(why))?;
        if let Some(disk) = self.spec.disks.get_mut(number) {
            disk.path = path;
        }
        self.manifest.disks.push(DiskPoint {
            disk: format!("disk{number}"),
            layer: (!readonly).then_some(layer),
            size,
            sum: (!readonly).then_some(wanted.sum),
            merging: None,
        });
        Ok(())
    }

    /// A kernel or an initrd. Says where it is.
    fn take_boot<R: Read>(
        &mut self,
        reader: &mut Reader<'_, R>,
        wanted: EntrySum,
        name: &str,
    ) -> Result<PathBuf, ArchiveError> {
        let id = Id::draw().map_err(ArchiveError::io(format!("name a {name}")))?;
        let path = self.store.places().boot().join(id.to_string());
        self.stage(reader, &wanted, path.clone())?;
        Ok(path)
    }

    /// Write an entry that will be at `path`. Says where it is now.
    fn stage<R: Read>(
        &mut self,
        reader: &mut Reader<'_, R>,
        wanted: &EntrySum,
        path: PathBuf,
    ) -> Result<PathBuf, ArchiveError> {
        let now = self.store.places().draft(self.manifest.id).join(&wanted.name);
        self.write(reader, wanted, &now)?;
        self.staged.push((now.clone(), path));
        Ok(now)
    }

    /// What the snapshot is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// Let it be a snapshot of the VM whose life is `vm`, which `claim` makes known by its record: it is given the snapshot's id.
    ///
    /// # Errors
    /// If the host fails, or `claim` does: then nothing of it is there.
    pub fn commit<E: From<StoreError>>(
        mut self,
        vm: Id,
        claim: impl FnOnce(Id, usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let store = self.store.clone();
        // A sweep would find files that nobody names yet.
        let _pin = store.pin()?;
        self.manifest.vm = vm;
        let path = store.places().snapshot(self.manifest.id);
        let failed = StoreError::io("keep the spec of", &path);
        self.manifest.spec = toml::to_string(&self.spec).map_err(io::Error::other).map_err(failed)?;
        self.name_staged()?;
        let Some(draft) = self.draft.take() else { return Ok(()) };
        claim(self.manifest.id, self.manifest.disks.len())?;
        draft.commit(&self.manifest)?;
        self.made.clear();
        Ok(())
    }

    /// Give what lies in the draft and is not the snapshot's alone its place.
    fn name_staged(&mut self) -> Result<(), StoreError> {
        let (storage, boot) = (self.store.storage(), self.store.places().boot());
        storage.create_dir(&boot).map_err(StoreError::io("make", &boot))?;
        for (from, to) in self.staged.drain(..) {
            storage.rename(&from, &to).map_err(StoreError::io("name", &to))?;
            self.made.push(to);
        }
        storage.sync_dir(&boot).map_err(StoreError::io("sync", &boot))
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        for path in &self.made {
            if let Err(error) = self.store.storage().remove_file(path) {
                log::warn!("{} is left to skiff system prune: {error}", path.display());
            }
        }
    }
}
