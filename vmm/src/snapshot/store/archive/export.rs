//! Writing an archive.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use devices::storage::StoredFile;

use super::super::super::manifest::{Manifest, Sum};
use super::super::super::memory::{Content, Index, MemoryLayer, PAGE};
use super::super::super::state;
use super::super::super::{Id, sealed};
use super::super::{Draft, Progress, Store, contents};
use super::{
    ArchiveError, CHUNK, CONTENTS, Contents, EntrySum, FORMAT, INDEX, INITRD, KERNEL, MEMORY, STATE,
    disk_entry, read_spec,
};
use crate::spec::VmSpec;

/// How hard zstd tries: memory and disks are large, and most of them compress well at once.
const LEVEL: i32 = 3;

/// Where an entry comes from.
enum Source {
    /// The whole file.
    File(PathBuf),
    /// The pages of a memory file, without its holes.
    Pages(PathBuf, Index),
}

/// What is to be written.
struct Plan {
    contents: Contents,
    sources: Vec<Source>,
}

impl Store {
    /// Write the snapshot `id` of the VM called `vm` to the new file `to`, with all that it needs.
    ///
    /// # Errors
    /// If something of the snapshot is damaged or missing, `to` is there already, or the host fails: then there is no such file.
    pub fn export(&self, id: Id, vm: &str, to: &Path, progress: Progress<'_>) -> Result<(), ArchiveError> {
        // Nothing that is read here is merged or deleted meanwhile.
        let _sweeping = self.sweeping()?;
        let chain = self.verify(id, progress)?;
        let Some(manifest) = chain.last() else { return Ok(()) };
        // A place for what must be joined first; gone at the end.
        let draft = self.begin(Id::draw().map_err(ArchiveError::io("name a file"))?, None)?;
        let plan = self.plan(manifest, &chain, vm, &draft, progress)?;
        let shown = to.display().to_string();
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
        let file = file.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => ArchiveError::Io {
                what: format!("write {shown}: choose another name, or remove that file"),
                source,
            },
            _ => ArchiveError::Io { what: format!("write {shown}"), source },
        })?;
        let written = self.write_archive(&plan, &file, progress);
        written.inspect_err(|_| _ = fs::remove_file(to)).map_err(ArchiveError::io(format!("write {shown}")))
    }

    /// Join what is spread over a chain, and say what everything is.
    fn plan(
        &self,
        manifest: &Manifest,
        chain: &[Manifest],
        vm: &str,
        draft: &Draft,
        progress: Progress<'_>,
    ) -> Result<Plan, ArchiveError> {
        let wrong =
            |why| ArchiveError::Damaged { path: format!("the spec of the snapshot {}", manifest.name), why };
        let spec = read_spec(&manifest.spec).map_err(wrong)?;
        let contents = Contents {
            format: FORMAT,
            arch: manifest.arch.clone(),
            vm: vm.to_owned(),
            name: manifest.name.clone(),
            comment: manifest.comment.clone(),
            created_ms: manifest.created_ms,
            pause_us: manifest.pause_us,
            spec: manifest.spec.clone(),
            entries: Vec::new(),
            disks: manifest.disks.iter().map(|point| point.size).collect(),
        };
        let mut plan = Plan { contents, sources: Vec::new() };
        self.add(&mut plan, STATE, self.file(manifest.id, state::STATE))?;
        let layers: Vec<MemoryLayer> = chain.iter().map(|manifest| self.memory_layer(manifest)).collect();
        let out = MemoryLayer { data: draft.dir().join(MEMORY), index: draft.dir().join(INDEX) };
        let index = contents::flatten_memory(self, &layers, &out, progress)?;
        self.add(&mut plan, INDEX, out.index)?;
        let sum = Sum { len: index.stored(), crc32: index.crc32() };
        plan.contents.entries.push(EntrySum { name: MEMORY.to_owned(), sum });
        plan.sources.push(Source::Pages(out.data, index));
        self.add_disks(&mut plan, manifest, &spec, draft, progress)?;
        self.add_boot(&mut plan, KERNEL, &spec.kernel)?;
        if let Some(initrd) = &spec.initrd {
            self.add_boot(&mut plan, INITRD, initrd)?;
        }
        Ok(plan)
    }

    fn add(&self, plan: &mut Plan, name: &str, path: PathBuf) -> Result<(), ArchiveError> {
        plan.contents.entries.push(EntrySum { name: name.to_owned(), sum: self.sum(&path)? });
        plan.sources.push(Source::File(path));
        Ok(())
    }

    fn add_disks(
        &self,
        plan: &mut Plan,
        manifest: &Manifest,
        spec: &VmSpec,
        draft: &Draft,
        progress: Progress<'_>,
    ) -> Result<(), ArchiveError> {
        for (number, disk) in spec.disks.iter().enumerate() {
            let layer = manifest.disks.get(number).and_then(|point| point.layer);
            let from = layer.map_or_else(|| disk.path.clone(), |layer| self.places().layer(layer));
            let out = draft.dir().join(disk_entry(number));
            contents::flatten_layers(self, &from, &out, progress)?;
            self.add(plan, &disk_entry(number), out)?;
        }
        Ok(())
    }

    fn add_boot(&self, plan: &mut Plan, what: &'static str, path: &Path) -> Result<(), ArchiveError> {
        // Said before hours of work, and with its own words.
        let boot = |source| ArchiveError::Boot { what, path: path.display().to_string(), source };
        self.storage().open(path, false).map_err(boot)?;
        self.add(plan, what, path.to_owned())
    }

    fn write_archive(&self, plan: &Plan, file: &File, progress: Progress<'_>) -> io::Result<()> {
        let mut encoder = zstd::Encoder::new(BufWriter::new(file), LEVEL)?;
        encoder.include_checksum(true)?;
        let mut archive = tar::Builder::new(encoder);
        let first = sealed::seal(&plan.contents)?;
        append(&mut archive, CONTENTS, first.len() as u64, first.as_slice())?;
        let total: u64 = plan.contents.entries.iter().map(|entry| entry.sum.len).sum();
        let mut done = 0_u64;
        for (entry, source) in plan.contents.entries.iter().zip(&plan.sources) {
            let mut count = |bytes: u64| {
                done = done.saturating_add(bytes);
                progress(done, total);
            };
            let (path, runs) = match source {
                Source::File(path) => (path, vec![(0, entry.sum.len)]),
                Source::Pages(path, index) => (path, data_runs(index)),
            };
            let file = self.storage().open(path, false)?;
            let reader = Pieces { file, runs: runs.into_iter(), at: 0, left: 0, count: &mut count };
            append(&mut archive, &entry.name, entry.sum.len, reader)?;
        }
        let mut buffered = archive.into_inner()?.finish()?;
        buffered.flush()?;
        drop(buffered);
        file.sync_all()
    }
}

/// Where the data of a memory file is: offsets and lengths, in bytes.
pub(super) fn data_runs(index: &Index) -> Vec<(u64, u64)> {
    let data = index.runs().iter().filter(|run| run.content == Content::Data);
    data.map(|run| (u64::from(run.first) * PAGE, u64::from(run.count) * PAGE)).collect()
}

fn append(archive: &mut tar::Builder<impl Write>, name: &str, len: u64, from: impl Read) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o600);
    header.set_size(len);
    archive.append_data(&mut header, name, from)
}

/// Reads pieces of a file one after the other.
struct Pieces<'a> {
    file: Box<dyn StoredFile>,
    runs: std::vec::IntoIter<(u64, u64)>,
    at: u64,
    left: u64,
    count: &'a mut dyn FnMut(u64),
}

impl Read for Pieces<'_> {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            match self.runs.next() {
                Some((at, len)) => (self.at, self.left) = (at, len),
                None => return Ok(0),
            }
        }
        let most = usize::try_from(self.left).unwrap_or(CHUNK).min(CHUNK).min(data.len());
        let part = data.get_mut(..most).unwrap_or_default();
        self.file.read_exact_at(part, self.at)?;
        let len = most as u64;
        self.at = self.at.saturating_add(len);
        self.left = self.left.saturating_sub(len);
        (self.count)(len);
        Ok(most)
    }
}
