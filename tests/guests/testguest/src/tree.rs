//! A tree of a shared folder, copied within it. What was looked up is held to the end, as a kernel holds it for its cache of names.

use alloc::vec::Vec;

use rt::println;

use crate::folder::{self, Folder, ROOT};
use crate::{Outcome, check};

const READLINK: u32 = 5;
const SYMLINK: u32 = 6;
const MKDIR: u32 = 9;
const OPEN: u32 = 14;
const RELEASE: u32 = 18;
const OPENDIR: u32 = 27;
const RELEASEDIR: u32 = 29;
const READDIRPLUS: u32 = 44;
/// How long a list is that is asked for at once.
const LIST: u32 = 16 << 10;
/// The type in a mode, and its values.
const TYPE: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// What a directory has: `fuse_direntplus`.
struct Entry {
    /// With the NUL behind it, as requests have it.
    name: Vec<u8>,
    node: u64,
    size: u64,
    mode: u32,
}

/// What has been copied.
#[derive(Default)]
struct Copied {
    files: u64,
    directories: u64,
    links: u64,
    bytes: u64,
    /// The hashes of all files, added.
    sum: u64,
}

/// Copy `tree` to `copy`.
pub fn copy() -> Outcome {
    let mut folder = Folder::mount()?;
    let from = folder.lookup("tree")?;
    let to = folder.make_directory(ROOT, 0o755, b"copy\0")?;
    let mut copied = Copied::default();
    copy_directory(&mut folder, from, to, &mut copied)?;
    let Copied { files, directories, links, bytes, sum } = copied;
    println!("tree-copied {files} {directories} {links} {bytes} {sum:#x}");
    Ok(())
}

fn copy_directory(folder: &mut Folder, from: u64, to: u64, copied: &mut Copied) -> Outcome {
    for entry in folder.list(from)? {
        let (mark, _) = rt::memory::free();
        match entry.mode & TYPE {
            DIRECTORY => {
                let below = folder.make_directory(to, entry.mode, &entry.name)?;
                copied.directories += 1;
                copy_directory(folder, entry.node, below, copied)?;
            }
            LINK => {
                let target = folder.ask(READLINK, entry.node, &[])?;
                folder.ask(SYMLINK, to, &[&entry.name, &target, &b"\0"[..]].concat())?;
                copied.links += 1;
            }
            FILE => copy_file(folder, &entry, to, copied)?,
            other => return Err(alloc::format!("a file of type {other:o}")),
        }
        // SAFETY: what was made since is in no variable any more, and the device has pages that were there before.
        unsafe { rt::memory::release(mark) };
    }
    Ok(())
}

fn copy_file(folder: &mut Folder, entry: &Entry, to: u64, copied: &mut Copied) -> Outcome {
    let source = folder::number(&folder.ask(OPEN, entry.node, &folder::words(&[0, 0]))?, 0);
    let (node, target) = folder.create(to, entry.mode, &entry.name)?;
    let (mut sum, mut at) = (folder::EMPTY, 0);
    while at < entry.size {
        let piece = folder.read(entry.node, source, at)?;
        check!(!piece.is_empty(), "a file ends at {at} of {}", entry.size);
        folder.write(node, target, at, &piece)?;
        sum = folder::hash(sum, &piece);
        at += piece.len() as u64;
    }
    folder.release(RELEASE, entry.node, source)?;
    folder.release(RELEASE, node, target)?;
    copied.files += 1;
    copied.bytes += at;
    copied.sum = copied.sum.wrapping_add(sum);
    Ok(())
}

impl Folder {
    fn make_directory(&mut self, parent: u64, mode: u32, name: &[u8]) -> Result<u64, alloc::string::String> {
        let answer = self.ask(MKDIR, parent, &[&folder::words(&[mode, 0]), name].concat())?;
        Ok(folder::number(&answer, 0))
    }

    /// What is in a directory, without itself and the one above.
    fn list(&mut self, node: u64) -> Result<Vec<Entry>, alloc::string::String> {
        let handle = folder::number(&self.ask(OPENDIR, node, &folder::words(&[0, 0]))?, 0);
        let (mut entries, mut offset) = (Vec::new(), 0);
        loop {
            let body = [folder::longs(&[handle, offset]), folder::words(&[LIST, 0, 0, 0, 0, 0])].concat();
            let list = self.ask(READDIRPLUS, node, &body)?;
            let mut rest = &list[..];
            while let Some((entry, after)) = parse(rest, &mut offset) {
                if !matches!(&entry.name[..], b".\0" | b"..\0") {
                    entries.push(entry);
                }
                rest = after;
            }
            check!(rest.is_empty(), "a list ends within an entry");
            if list.is_empty() {
                self.release(RELEASEDIR, node, handle)?;
                return Ok(entries);
            }
        }
    }

    fn release(&mut self, opcode: u32, node: u64, handle: u64) -> Outcome {
        self.ask(opcode, node, &folder::longs(&[handle, 0, 0]))?;
        Ok(())
    }
}

/// The first entry of a list, and those behind it. `offset` is where the directory is read on after it.
fn parse<'a>(list: &'a [u8], offset: &mut u64) -> Option<(Entry, &'a [u8])> {
    let length = u32::from_le_bytes(list.get(144..148)?.try_into().ok()?) as usize;
    let name = [list.get(152..152 + length)?, &[0]].concat();
    let after = list.get((152 + length).next_multiple_of(8)..)?;
    *offset = folder::number(list, 136);
    let mode = folder::number(list, 100) as u32;
    Some((Entry { name, node: folder::number(list, 0), size: folder::number(list, 48), mode }, after))
}
