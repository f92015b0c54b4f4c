//! A FUSE client as small as it gets: it sends what it is told.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use crate::virtio::device::VirtioDevice;
use crate::virtio::fs::{Folder, Fs, Owners, room};
use crate::virtio::testing::{Buf, Guest, GuestQueue, Kind, RAM};
use crate::virtio::transport::TransportState;

/// Where requests are put, and where answers are expected.
pub const REQUEST: u64 = RAM[1].0;
pub const ANSWER: u64 = RAM[1].0 + (2 << 20);
/// Room for any answer.
pub const ROOM: u32 = (1 << 20) + 4096;

/// The shared folder's node.
pub const ROOT: u64 = 1;

pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const CREATE: u32 = 35;
    pub const DESTROY: u32 = 38;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const SETUPMAPPING: u32 = 48;
}

/// What is known of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    pub ino: u64,
    pub size: u64,
    pub mode: u32,
    pub links: u32,
    pub owner: (u32, u32),
}

/// What a lookup gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub node: u64,
    pub attributes: Attributes,
}

/// A number in an answer.
pub fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub fn number32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn attributes(bytes: &[u8]) -> Attributes {
    Attributes {
        ino: number(bytes, 0),
        size: number(bytes, 8),
        mode: number32(bytes, 60),
        links: number32(bytes, 64),
        owner: (number32(bytes, 68), number32(bytes, 72)),
    }
}

fn found(bytes: &[u8]) -> Found {
    assert_eq!(bytes.len(), 128, "an entry");
    Found { node: number(bytes, 0), attributes: attributes(&bytes[40..]) }
}

/// Words of a request, one after the other.
pub fn words(parts: &[u32]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.to_le_bytes()).collect()
}

pub fn longs(parts: &[u64]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.to_le_bytes()).collect()
}

/// A name as requests have it.
pub fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// A guest with a folder of a host: `share` in a directory that holds what is not shared.
pub struct Client {
    pub guest: Guest,
    pub queues: Vec<GuestQueue>,
    host: Arc<TempDir>,
    folder: Arc<Folder>,
}

impl Client {
    /// The guest sees the host's ids, and has mounted the folder.
    pub fn new() -> Self {
        Self::with(false, Owners::Same)
    }

    pub fn with(read_only: bool, owners: Owners) -> Self {
        let mut client = Self::unmounted(read_only, owners);
        client.init().unwrap();
        client
    }

    pub fn unmounted(read_only: bool, owners: Owners) -> Self {
        let host = tempfile::tempdir().unwrap();
        std::fs::create_dir(host.path().join("share")).unwrap();
        std::fs::write(host.path().join("secret"), "secret").unwrap();
        let folder = Folder::open(&host.path().join("share"), read_only, owners).unwrap();
        Self::on(Arc::new(host), Arc::new(folder), room(1).unwrap())
    }

    /// A device that has few descriptors.
    pub fn few() -> Self {
        let client = Self::unmounted(false, Owners::Same);
        let mut few = Self::on(Arc::clone(&client.host), Arc::clone(&client.folder), 16);
        few.init().unwrap();
        few
    }

    fn on(host: Arc<TempDir>, folder: Arc<Folder>, most: usize) -> Self {
        let mut guest = Guest::new(Kind::Mmio, device(&folder, most));
        let queues = guest.start(u64::MAX);
        Self { guest, queues, host, folder }
    }

    /// A path on the host, outside the folder.
    pub fn outside(&self, name: &str) -> PathBuf {
        self.host.path().join(name)
    }

    /// A path on the host, in the folder.
    pub fn inside(&self, name: &str) -> PathBuf {
        self.host.path().join("share").join(name)
    }

    /// Put a file into the folder, on the host.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.inside(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The device's state.
    pub fn save(&self) -> TransportState {
        self.guest.save()
    }

    /// Go on as `state` says, with a new device.
    pub fn restore(&mut self, state: &TransportState) {
        let file = serde_json::to_string(state).unwrap();
        self.guest
            .restore(device(&self.folder, room(1).unwrap()), &serde_json::from_str(&file).unwrap())
            .unwrap();
        self.guest.transport().resume();
    }

    /// Put a request into the guest's memory: its buffers, and those for the answer.
    pub fn put(&self, request: &[u8], room: u32) -> Vec<Buf> {
        self.guest.ram.write_slice(request, GuestAddress(REQUEST)).unwrap();
        let mut buffers = Vec::new();
        // No buffer has a length of 0. The first is cut where no structure ends.
        let cut = request.len().min(33) as u32;
        let rest = request.len() as u32 - cut;
        buffers.extend(
            [(REQUEST, cut), (REQUEST + u64::from(cut), rest)].map(|(at, len)| Buf::readable(at, len)),
        );
        buffers
            .extend([Buf::writable(ANSWER, room.min(7)), Buf::writable(ANSWER + 7, room.saturating_sub(7))]);
        buffers.retain(|buffer| buffer.len > 0);
        buffers
    }

    /// Send bytes as they are; what came back, and how much of it the device says it wrote.
    pub fn send(&mut self, queue: usize, request: &[u8], room: u32) -> Vec<u8> {
        let buffers = self.put(request, room);
        let len = self.guest.request(&mut self.queues[queue], &buffers);
        assert!(len <= room, "no more than there is room for");
        self.guest.get(ANSWER, len as usize)
    }

    /// A whole request of a process of root's.
    pub fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        let header = [words(&[40 + body.len() as u32, opcode]), longs(&[0x7777, node]), words(&[0, 0, 1, 0])];
        [&header.concat(), body].concat()
    }

    /// Do `opcode`: what the answer says after its header.
    pub fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let answer = self.send(1, &Self::request(opcode, node, body), ROOM);
        Self::answer(&answer)
    }

    /// Read an answer's header.
    pub fn answer(answer: &[u8]) -> Result<Vec<u8>, i32> {
        assert_eq!(number32(answer, 0) as usize, answer.len(), "the answer is as long as it says");
        match number32(answer, 4) as i32 {
            0 => {
                assert_eq!(number(answer, 8), 0x7777);
                Ok(answer[16..].to_vec())
            }
            error => Err(-error),
        }
    }

    pub fn init(&mut self) -> Result<Vec<u8>, i32> {
        self.call(op::INIT, 0, &words(&[7, 36, 0x20000, 0x3fff_ffff]))
    }

    pub fn lookup(&mut self, parent: u64, name: &str) -> Result<Found, i32> {
        self.call(op::LOOKUP, parent, &text(name)).map(|answer| found(&answer))
    }

    /// Walk down from the folder.
    pub fn find(&mut self, path: &str) -> Result<Found, i32> {
        let mut at = self.getattr(ROOT).map(|attributes| Found { node: ROOT, attributes })?;
        for name in path.split('/') {
            at = self.lookup(at.node, name)?;
        }
        Ok(at)
    }

    pub fn getattr(&mut self, node: u64) -> Result<Attributes, i32> {
        self.call(op::GETATTR, node, &[0; 16]).map(|answer| attributes(&answer[16..]))
    }

    /// Change what `valid` says: mode, owner, size.
    pub fn setattr(
        &mut self,
        node: u64,
        valid: u32,
        mode: u32,
        owner: (u32, u32),
        size: u64,
    ) -> Result<(), i32> {
        let body = [
            words(&[valid, 0]),
            longs(&[0, size, 0, 0, 0, 0]),
            words(&[0, 0, 0, mode, 0, owner.0, owner.1, 0]),
        ];
        self.call(op::SETATTR, node, &body.concat()).map(drop)
    }

    pub fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        self.call(op::OPEN, node, &words(&[flags as u32, 0])).map(|answer| number(&answer, 0))
    }

    pub fn create(&mut self, parent: u64, name: &str, flags: i32, mode: u32) -> Result<(Found, u64), i32> {
        let body = [words(&[flags as u32, mode, 0, 0]), text(name)].concat();
        self.call(op::CREATE, parent, &body).map(|answer| (found(&answer[..128]), number(&answer, 128)))
    }

    pub fn read(&mut self, node: u64, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        let body = [longs(&[handle, offset]), words(&[size, 0, 0, 0, 0, 0])].concat();
        self.call(op::READ, node, &body)
    }

    pub fn write(&mut self, node: u64, handle: u64, offset: u64, data: &[u8]) -> Result<u32, i32> {
        let len = data.len() as u32;
        let body = [longs(&[handle, offset]), words(&[len, 0, 0, 0, libc::O_RDWR as u32, 0]), data.to_vec()];
        self.call(op::WRITE, node, &body.concat()).map(|answer| number32(&answer, 0))
    }

    pub fn release(&mut self, node: u64, handle: u64) -> Result<(), i32> {
        self.call(op::RELEASE, node, &longs(&[handle, 0, 0])).map(drop)
    }

    /// Give a node back. There is no answer.
    pub fn forget(&mut self, node: u64, count: u64) {
        assert!(self.send(0, &Self::request(op::FORGET, node, &longs(&[count])), 0).is_empty());
    }

    pub fn mkdir(&mut self, parent: u64, name: &str) -> Result<Found, i32> {
        let body = [words(&[0o755, 0]), text(name)].concat();
        self.call(op::MKDIR, parent, &body).map(|answer| found(&answer))
    }

    pub fn symlink(&mut self, parent: u64, name: &str, target: &str) -> Result<Found, i32> {
        self.call(op::SYMLINK, parent, &[text(name), text(target)].concat()).map(|answer| found(&answer))
    }

    pub fn link(&mut self, node: u64, parent: u64, name: &str) -> Result<Found, i32> {
        self.call(op::LINK, parent, &[longs(&[node]), text(name)].concat()).map(|answer| found(&answer))
    }

    pub fn rename(&mut self, from: (u64, &str), to: (u64, &str)) -> Result<(), i32> {
        let body = [longs(&[to.0]), text(from.1), text(to.1)].concat();
        self.call(op::RENAME, from.0, &body).map(drop)
    }

    pub fn unlink(&mut self, parent: u64, name: &str) -> Result<(), i32> {
        self.call(op::UNLINK, parent, &text(name)).map(drop)
    }

    /// What is in a directory, sorted: names, and with `plus` the nodes that the guest was given with them.
    pub fn list(&mut self, node: u64, plus: bool) -> Result<Vec<(String, u64)>, i32> {
        let handle = number(&self.call(op::OPENDIR, node, &words(&[0, 0]))?, 0);
        let mut all = Vec::new();
        let mut offset = 0;
        loop {
            let body = [longs(&[handle, offset]), words(&[4096, 0, 0, 0, 0, 0])].concat();
            let answer = self.call(if plus { op::READDIRPLUS } else { op::READDIR }, node, &body)?;
            if answer.is_empty() {
                all.sort();
                return Ok(all);
            }
            let mut at = 0;
            while at < answer.len() {
                let given = if plus { number(&answer, at) } else { 0 };
                let entry = at + if plus { 128 } else { 0 };
                offset = number(&answer, entry + 8);
                let len = number32(&answer, entry + 16) as usize;
                let name = Path::new(std::ffi::OsStr::from_bytes(&answer[entry + 24..entry + 24 + len]));
                all.push((name.to_str().unwrap().to_owned(), given));
                at = (entry + 24 + len).next_multiple_of(8);
            }
        }
    }
}

fn device(folder: &Arc<Folder>, most: usize) -> Box<dyn VirtioDevice> {
    Box::new(Fs::new("fs0", "src", Arc::clone(folder), most, Arc::default()))
}
