//! virtio-fs, by a FUSE client of our own.

use alloc::string::String;
use alloc::vec::Vec;

use rt::memory::pages;
use rt::raw::Raw;
use rt::serial::PORT;
use rt::{clock, cpu, println};

use crate::{Outcome, check};

/// The device's ID, and its queue for requests.
const ID: u16 = 26;
const REQUESTS: u16 = 1;
/// What a request and an answer have room for.
const ROOM: u32 = 80 << 10;
/// How much is read and written at once.
const PIECE: usize = 64 << 10;
/// How long the file is that is written.
const WRITTEN: usize = 200_000;

pub const ROOT: u64 = 1;
const LOOKUP: u32 = 1;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const CREATE: u32 = 35;
/// `O_RDWR`.
const RDWR: u32 = 2;
/// `EINVAL` and `EBADF`.
const EINVAL: i32 = 22;
const EBADF: i32 = 9;
/// What ends the beats when it is typed.
const KEY: u8 = b'q';

/// A folder that is mounted.
pub struct Folder {
    device: Raw,
    request: u64,
    answer: u64,
    unique: u64,
}

pub fn number(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.iter_mut().zip(bytes.iter().skip(at)).for_each(|(to, from)| *to = *from);
    u64::from_le_bytes(word)
}

pub fn words(parts: &[u32]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.to_le_bytes()).collect()
}

pub fn longs(parts: &[u64]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.to_le_bytes()).collect()
}

fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

impl Folder {
    pub fn mount() -> Result<Self, String> {
        let Some(device) = Raw::start(ID, 128) else { return Err("no file system".into()) };
        check!(device.rings.len() == 2, "{} queues", device.rings.len());
        let room = u64::from(ROOM) / 4096;
        let mut folder = Self { device, request: pages(room) as u64, answer: pages(room) as u64, unique: 0 };
        let answer = folder.ask(INIT, 0, &words(&[7, 36, 0, 0x3fff_ffff]))?;
        check!(number(&answer, 0) & 0xffff_ffff == 7, "another protocol");
        Ok(folder)
    }

    /// What the guest mounts it by.
    fn tag(&self) -> String {
        (0..36).map(|at| self.device.config(at)).take_while(|byte| *byte != 0).map(char::from).collect()
    }

    /// Do `opcode`: what stands behind the answer's header, or the error's number.
    fn try_ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Result<Vec<u8>, i32>, String> {
        self.unique += 1;
        let header =
            [words(&[40 + body.len() as u32, opcode]), longs(&[self.unique, node]), words(&[0, 0, 1, 0])];
        let request = [&header.concat(), body].concat();
        check!(request.len() as u32 <= ROOM, "too long a request");
        // SAFETY: pages of our own, with room for it.
        unsafe { core::ptr::copy_nonoverlapping(request.as_ptr(), self.request as *mut u8, request.len()) };
        let mut buffers = alloc::vec![(self.request, 40, false)];
        if !body.is_empty() {
            buffers.push((self.request + 40, body.len() as u32, false));
        }
        buffers.extend([(self.answer, 16, true), (self.answer + 16, ROOM - 16, true)]);
        let Some(len) = self.device.request(REQUESTS, &buffers) else { return Err("no answer".into()) };
        check!((16..=ROOM).contains(&len), "an answer of {len} bytes");
        // SAFETY: pages of our own, of which the device says it wrote so many.
        let answer = unsafe { core::slice::from_raw_parts(self.answer as *const u8, len as usize) };
        check!(number(answer, 8) == self.unique, "the answer to another request");
        check!(number(answer, 0) as u32 == len, "an answer with another length");
        match (number(answer, 0) >> 32) as i32 {
            0 => Ok(Ok(answer[16..].to_vec())),
            error => Ok(Err(-error)),
        }
    }

    pub fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, String> {
        self.try_ask(opcode, node, body)?.map_err(|error| alloc::format!("request {opcode}: error {error}"))
    }

    pub fn read(&mut self, node: u64, handle: u64, offset: u64) -> Result<Vec<u8>, String> {
        let body = [longs(&[handle, offset]), words(&[PIECE as u32, 0, 0, 0, 0, 0])].concat();
        self.ask(READ, node, &body)
    }

    pub fn write(&mut self, node: u64, handle: u64, offset: u64, data: &[u8]) -> Outcome {
        let head = [longs(&[handle, offset]), words(&[data.len() as u32, 0, 0, 0, RDWR, 0])].concat();
        let answer = self.ask(WRITE, node, &[&head, data].concat())?;
        check!(number(&answer, 0) as u32 == data.len() as u32, "a part was written");
        Ok(())
    }

    pub fn lookup(&mut self, name: &str) -> Result<u64, String> {
        Ok(number(&self.ask(LOOKUP, ROOT, &text(name))?, 0))
    }

    /// A new file in a directory, its name with the NUL behind it: its node, and it open.
    pub fn create(&mut self, parent: u64, mode: u32, name: &[u8]) -> Result<(u64, u64), String> {
        let answer = self.ask(CREATE, parent, &[&words(&[RDWR, mode, 0, 0]), name].concat())?;
        Ok((number(&answer, 0), number(&answer, 128)))
    }
}

/// FNV-1a, 64 bits.
pub fn hash(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

pub const EMPTY: u64 = 0xcbf2_9ce4_8422_2325;

/// Read a file of the host's, write one, list the folder, and try what must not work.
pub fn files() -> Outcome {
    let mut folder = Folder::mount()?;
    println!("folder-tag {}", folder.tag());
    let found = folder.ask(LOOKUP, ROOT, &text("in"))?;
    let (node, size) = (number(&found, 0), number(&found, 48));
    let handle = number(&folder.ask(OPEN, node, &words(&[0, 0]))?, 0);
    let (mut sum, mut at) = (EMPTY, 0);
    while let piece @ [_, ..] = folder.read(node, handle, at)?.as_slice() {
        sum = hash(sum, piece);
        at += piece.len() as u64;
    }
    check!(at == size, "{at} bytes of {size}");
    println!("folder-in {sum:#x} {size}");
    let (node, handle) = folder.create(ROOT, 0o644, b"out\0")?;
    let data: Vec<u8> = (0..WRITTEN as u32).map(|i| (i.wrapping_mul(31) >> 3) as u8).collect();
    for (piece, at) in data.chunks(PIECE).zip((0..).step_by(PIECE)) {
        folder.write(node, handle, at, piece)?;
    }
    println!("folder-out {:#x} {WRITTEN}", hash(EMPTY, &data));
    println!("folder-names {}", names(&mut folder)?);
    for name in ["..", ".", "../secret", "a/b"] {
        let error = folder.try_ask(LOOKUP, ROOT, &text(name))?.err();
        check!(error == Some(EINVAL), "{name} ended with {error:?}");
    }
    let stolen = [longs(&[handle + 100, 0]), words(&[4096, 0, 0, 0, 0, 0])].concat();
    let error = folder.try_ask(READ, node, &stolen)?.err();
    check!(error == Some(EBADF), "an open file that is none ended with {error:?}");
    check!(folder.device.status() == 15, "the device wants a reset");
    Ok(())
}

/// How many names are in the folder.
fn names(folder: &mut Folder) -> Result<usize, String> {
    let handle = number(&folder.ask(OPENDIR, ROOT, &words(&[0, 0]))?, 0);
    let (mut count, mut offset) = (0, 0);
    loop {
        let body = [longs(&[handle, offset]), words(&[4096, 0, 0, 0, 0, 0])].concat();
        let list = folder.ask(READDIR, ROOT, &body)?;
        if list.is_empty() {
            return Ok(count);
        }
        let mut at = 0;
        while at < list.len() {
            offset = number(&list, at + 8);
            at += (24 + (number(&list, at + 16) & 0xffff_ffff) as usize).next_multiple_of(8);
            count += 1;
        }
    }
}

/// Until somebody types the key: write to a file that is open, and read all of it back.
pub fn beats() -> Outcome {
    // A port whose driver does not ask for input gets none.
    cpu::out8(PORT + 1, 1);
    let mut folder = Folder::mount()?;
    let (node, handle) = folder.create(ROOT, 0o644, b"log\0")?;
    for beat in 0_u64.. {
        folder.write(node, handle, 8 * beat, &beat.to_le_bytes())?;
        let last = folder.read(node, handle, 8 * beat)?;
        check!(number(&last, 0) == beat, "beat {beat} is read as {}", number(&last, 0));
        println!("beat {beat}");
        let until = clock::nanos() + 5_000_000;
        while clock::nanos() < until {}
        // A KVM in software was seen to answer the first of these with 0x3, which the port never says, right after a rollback.
        if cpu::in8(PORT + 5) & 1 != 0 && cpu::in8(PORT) == KEY {
            return Ok(());
        }
    }
    Ok(())
}
