//! Memory files put together, and checked by content. Through [`Storage`], on any thread.
//!
//! All data of each file goes through here, even what another covers, and is checked against its index: a file that has gone bad
//! must not get a new checksum that says it is right. That is why the kernel is not asked to copy
//! (`copy_file_range`).

use std::ops::Range;

use devices::storage::{Storage, StoredFile};

use super::MemoryLayer;
use super::error::MemoryFileError;
use super::index::{Content, Index, PAGE};
use super::pieces::{Piece, Runs, inside, overlay, union};
use super::plan::data_of;
use crate::spec::Memory;

/// How many pages are gone through at once: 1 MiB.
const WINDOW: u32 = 256;

/// Write `upper` over `base`, its neighbour below, as the new files `out`: with the rest of a chain it is the same as both.
/// All is durable then but for the files' names. `progress` is told how many bytes of how many were read.
///
/// # Errors
/// If a file is not right or not of the same RAM, `out` exists, or the host fails. Then `out` is removed.
pub fn merge(
    storage: &dyn Storage,
    base: &MemoryLayer,
    upper: &MemoryLayer,
    out: &MemoryLayer,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Index, MemoryFileError> {
    combine(storage, &[base.clone(), upper.clone()], true, out, progress)
}

/// Write a whole chain, base first, as one that needs no other: the new files `out`. As [`merge`] otherwise.
///
/// # Errors
/// As [`merge`].
pub fn flatten(
    storage: &dyn Storage,
    chain: &[MemoryLayer],
    out: &MemoryLayer,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Index, MemoryFileError> {
    combine(storage, chain, false, out, progress)
}

/// Read all data of `layer` and check it. `progress` is told how many bytes of how many were read.
///
/// # Errors
/// If a file is not right, or the host fails.
pub fn verify(
    storage: &dyn Storage,
    layer: &MemoryLayer,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), MemoryFileError> {
    let mut sources = Sources::open(storage, std::slice::from_ref(layer))?;
    for window in sources.windows() {
        sources.read(&window, |_, _, _| {}, progress)?;
    }
    sources.check()
}

fn combine(
    storage: &dyn Storage,
    layers: &[MemoryLayer],
    keep_zeros: bool,
    out: &MemoryLayer,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Index, MemoryFileError> {
    let sources = Sources::open(storage, layers)?;
    let data = storage.create(&out.data).map_err(MemoryFileError::file("create", &out.data))?;
    let written = write(sources, keep_zeros, &*data, out, progress).and_then(|index| {
        index.write(storage, &out.index)?;
        Ok(index)
    });
    if written.is_err() {
        // The first failure is the one to tell.
        let _ = storage.remove_file(&out.data);
        let _ = storage.remove_file(&out.index);
    }
    written
}

/// Write the data of `sources` to `data`.
fn write(
    mut sources: Sources,
    keep_zeros: bool,
    data: &dyn StoredFile,
    out: &MemoryLayer,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Index, MemoryFileError> {
    let failed = MemoryFileError::file("write", &out.data);
    let size = u64::from(sources.pages) * PAGE;
    data.set_len(size).map_err(&failed)?;
    let mut seen = overlay(sources.all.iter().map(|source| source.index.runs()));
    if !keep_zeros {
        seen.retain(|piece| piece.content == Content::Data);
    }
    let mut runs = Runs::default();
    let mut crc = crc32fast::Hasher::new();
    let mut buffer = vec![0; WINDOW as usize * PAGE as usize];
    for window in sources.windows() {
        let take = |source: usize, pages: &Range<u32>, bytes: &[u8]| {
            for piece in inside(&seen, pages).filter(|piece| piece.layer == source) {
                let to = part(&window, &piece.pages()).and_then(|part| buffer.get_mut(part));
                let from = part(pages, &piece.pages()).and_then(|part| bytes.get(part));
                if let (Some(to), Some(from)) = (to, from) {
                    to.copy_from_slice(from);
                }
            }
        };
        sources.read(&window, take, progress)?;
        for piece in inside(&seen, &window) {
            runs.add(piece.first, piece.count(), piece.content);
            let bytes = part(&window, &piece.pages()).and_then(|part| buffer.get(part));
            if let Some(bytes) = bytes.filter(|_| piece.content == Content::Data) {
                crc.update(bytes);
                data.write_all_at(bytes, u64::from(piece.first) * PAGE).map_err(&failed)?;
            }
        }
    }
    sources.check()?;
    data.sync().map_err(MemoryFileError::file("sync", &out.data))?;
    Ok(Index::new(size, runs.into_vec(), crc.finalize())?)
}

/// Where the bytes of `pages` are among those of `all`.
fn part(all: &Range<u32>, pages: &Range<u32>) -> Option<Range<usize>> {
    let bytes = |page: u32| Some(page.checked_sub(all.start)? as usize * PAGE as usize);
    Some(bytes(pages.start)?..bytes(pages.end)?)
}

/// The files of a chain, read side by side.
struct Sources {
    all: Vec<Source>,
    pages: u32,
    buffer: Vec<u8>,
    /// How many bytes were read, and how many there are.
    read: u64,
    total: u64,
}

/// One of them.
struct Source {
    layer: MemoryLayer,
    index: Index,
    data: Vec<Piece>,
    file: Box<dyn StoredFile>,
    crc: crc32fast::Hasher,
}

impl Source {
    fn open(storage: &dyn Storage, layer: &MemoryLayer) -> Result<Self, MemoryFileError> {
        let index = Index::read(storage, &layer.index)?;
        let file = storage.open(&layer.data, false).map_err(MemoryFileError::file("open", &layer.data))?;
        let has = file.len().map_err(MemoryFileError::file("look at", &layer.data))?;
        if has < index.size() {
            return Err(MemoryFileError::Truncated { path: layer.data.clone(), has, needs: index.size() });
        }
        let data = data_of(index.runs(), 0);
        Ok(Self { layer: layer.clone(), index, data, file, crc: crc32fast::Hasher::new() })
    }
}

impl Sources {
    fn open(storage: &dyn Storage, layers: &[MemoryLayer]) -> Result<Self, MemoryFileError> {
        let mut all: Vec<Source> = Vec::with_capacity(layers.len());
        let mut pages = None;
        for layer in layers {
            let source = Source::open(storage, layer)?;
            let (has, needs) = (source.index.pages(), *pages.get_or_insert(source.index.pages()));
            if has != needs {
                return Err(MemoryFileError::Size {
                    path: layer.data.clone(),
                    has: Memory(u64::from(has) * PAGE),
                    needs: Memory(u64::from(needs) * PAGE),
                });
            }
            all.push(source);
        }
        let total = all.iter().map(|source| source.index.stored()).sum();
        let buffer = vec![0; WINDOW as usize * PAGE as usize];
        Ok(Self { all, pages: pages.unwrap_or(0), buffer, read: 0, total })
    }

    /// All pages of any file's runs, in rising order, [`WINDOW`] at most at a time.
    fn windows(&self) -> Vec<Range<u32>> {
        let runs = self.all.iter().flat_map(|source| source.index.runs());
        let all = union(runs.map(|run| run.first..run.end()).collect());
        let cut = |range: Range<u32>| {
            let end = range.end;
            range.step_by(WINDOW as usize).map(move |first| first..end.min(first.saturating_add(WINDOW)))
        };
        all.into_iter().flat_map(cut).collect()
    }

    /// Read what each file has in `window`, and give it to `take`: which file, which pages, their bytes.
    fn read(
        &mut self,
        window: &Range<u32>,
        mut take: impl FnMut(usize, &Range<u32>, &[u8]),
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), MemoryFileError> {
        for (at, source) in self.all.iter_mut().enumerate() {
            for piece in inside(&source.data, window) {
                let len = piece.count() as usize * PAGE as usize;
                let bytes = self.buffer.get_mut(..len).unwrap_or_default();
                let read = source.file.read_exact_at(bytes, u64::from(piece.first) * PAGE);
                read.map_err(MemoryFileError::file("read", &source.layer.data))?;
                source.crc.update(bytes);
                take(at, &piece.pages(), bytes);
                self.read = self.read.saturating_add(len as u64);
            }
        }
        progress(self.read, self.total);
        Ok(())
    }

    /// Whether all that was read is what was written once.
    fn check(&self) -> Result<(), MemoryFileError> {
        let wrong = |source: &&Source| source.crc.clone().finalize() != source.index.crc32();
        match self.all.iter().find(wrong) {
            Some(source) => Err(MemoryFileError::Corrupted { path: source.layer.data.clone() }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use devices::storage::faulty::{Fault, FaultyStorage};

    use super::super::index::Run;
    use super::*;

    const PAGES: u32 = 600;

    fn files(name: &str) -> MemoryLayer {
        let dir = Path::new("/snapshots");
        MemoryLayer { data: dir.join(format!("memory-{name}")), index: dir.join(format!("index-{name}")) }
    }

    /// Make a layer whose pages hold `value`, or are zero.
    fn layer(storage: &FaultyStorage, name: &str, runs: &[(u32, u32, u8)]) -> MemoryLayer {
        let files = files(name);
        let data = storage.create(&files.data).unwrap();
        data.set_len(u64::from(PAGES) * PAGE).unwrap();
        let (mut all, mut crc) = (Runs::default(), crc32fast::Hasher::new());
        for (first, count, value) in runs {
            let bytes = vec![*value; *count as usize * PAGE as usize];
            let content = if *value == 0 { Content::Zero } else { Content::Data };
            all.add(*first, *count, content);
            if content == Content::Data {
                crc.update(&bytes);
                data.write_all_at(&bytes, u64::from(*first) * PAGE).unwrap();
            }
        }
        data.sync().unwrap();
        let index = Index::new(u64::from(PAGES) * PAGE, all.into_vec(), crc.finalize()).unwrap();
        index.write(storage, &files.index).unwrap();
        files
    }

    fn world() -> (FaultyStorage, MemoryLayer, MemoryLayer) {
        let storage = FaultyStorage::new();
        storage.create_dir(Path::new("/snapshots")).unwrap();
        let base = layer(&storage, "base", &[(0, 300, 1), (500, 2, 2)]);
        let upper = layer(&storage, "upper", &[(10, 1, 3), (20, 5, 0), (299, 2, 4), (501, 1, 0)]);
        storage.sync_dir(Path::new("/snapshots")).unwrap();
        storage.sync_dir(Path::new("/")).unwrap();
        (storage, base, upper)
    }

    fn check(storage: &FaultyStorage, out: &MemoryLayer) {
        verify(storage, out, &mut |_, _| {}).unwrap();
        let index = Index::read(storage, &out.index).unwrap();
        let data = |first, count| Run { first, count, content: Content::Data };
        let zero = |first, count| Run { first, count, content: Content::Zero };
        assert_eq!(index.runs(), [data(0, 20), zero(20, 5), data(25, 276), data(500, 1), zero(501, 1)]);
        let content = storage.content(&out.data).unwrap();
        let page = |page: usize| content[page * PAGE as usize];
        assert_eq!([9, 10, 11, 20, 25, 299, 300, 500, 501].map(page), [1, 3, 1, 0, 1, 4, 4, 2, 0]);
    }

    #[test]
    fn a_merge_that_fails_at_any_step_leaves_both_layers_and_can_be_done_again() {
        let (storage, base, upper) = world();
        let before = storage.operations();
        let mut told = (0, 0);
        merge(&storage, &base, &upper, &files("out"), &mut |done, total| told = (done, total)).unwrap();
        assert_eq!(told, (305 * PAGE, 305 * PAGE));
        check(&storage, &files("out"));
        let steps = storage.operations() - before;
        assert!(steps > 5, "{steps}");
        for step in before..before + steps {
            for fault in [Fault::Eio { at: step }, Fault::Full { at: step }, Fault::PowerOff { at: step }] {
                let (mut storage, base, upper) = world();
                storage.plan(Some(fault));
                let done = merge(&storage, &base, &upper, &files("out"), &mut |_, _| {});
                if storage.is_off() {
                    assert!(done.is_err(), "{fault:?}");
                    storage = storage.after_power_cut(step);
                }
                storage.plan(None);
                for layer in [&base, &upper] {
                    verify(&storage, layer, &mut |_, _| {}).unwrap();
                }
                if done.is_err() {
                    merge(&storage, &base, &upper, &files("again"), &mut |_, _| {}).unwrap();
                    check(&storage, &files("again"));
                }
            }
        }
    }

    #[test]
    fn flattened_there_are_no_zeros_to_speak_of_and_what_is_bad_stays_known_as_bad() {
        let (storage, base, upper) = world();
        let chain = [base.clone(), upper];
        let index = flatten(&storage, &chain, &files("flat"), &mut |_, _| {}).unwrap();
        let runs: Vec<_> = index.runs().iter().map(|run| (run.first, run.count)).collect();
        assert_eq!(runs, [(0, 20), (25, 276), (500, 1)]);
        // A page that the upper layer covers.
        storage.open(&base.data, true).unwrap().write_all_at(&[9], 10 * PAGE).unwrap();
        let error = flatten(&storage, &chain, &files("bad"), &mut |_, _| {}).unwrap_err();
        assert!(matches!(error, MemoryFileError::Corrupted { path } if path == base.data));
        assert!(storage.content(&files("bad").data).is_err());
    }
}
