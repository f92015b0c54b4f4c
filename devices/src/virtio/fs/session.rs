//! One mount of the guest: from `FUSE_INIT` to `FUSE_DESTROY`, a reset, or the end.
//!
//! The library does the work on the host's files. It holds a descriptor of each file that the guest knows and walks from there,
//! one name at a time. What stands between it and the guest:
//!
//! - numbers of nodes and open files are the session's own ([`Tables`]);
//! - a directory that somebody on the host moved out of the shared folder leads nowhere any more ([`Session::directory`]);
//! - hard links are made here ([`Session::link_source`]): the library's way needs root.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{FsOptions, OpenOptions};
use fuse_backend_rs::api::filesystem::{Context, Entry, FileSystem};
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::saved::{FsHandle, FsNode, FsSession};
use super::table::{Handle, Node, Place, ROOT, Tables};
use super::words;
use crate::ratelog;
use crate::state::Hex;

/// How long the guest may take what it was told for true. What changes on the host is seen after that, and a walk over a tree
/// does not ask twice.
const VALID: Duration = Duration::from_millis(100);

/// What is asked of the guest's kernel. Not among it: writing back later, for then what a guest wrote would not be on the host when
/// it says so; and locks, which the guest's kernel then keeps among its own processes.
fn wanted() -> FsOptions {
    FsOptions::ASYNC_READ
        | FsOptions::ATOMIC_O_TRUNC
        | FsOptions::BIG_WRITES
        | FsOptions::DONT_MASK
        | FsOptions::AUTO_INVAL_DATA
        | FsOptions::DO_READDIRPLUS
        | FsOptions::READDIRPLUS_AUTO
        | FsOptions::ASYNC_DIO
        | FsOptions::PARALLEL_DIROPS
        | FsOptions::MAX_PAGES
        | FsOptions::HANDLE_KILLPRIV_V2
}

/// How many nodes are let go of after one request: more than one request gets.
const TRIMMED: usize = 512;

/// Who works on the host's files.
pub(super) type Library = PassthroughFs<()>;

/// A mount.
pub(super) struct Session {
    pub(super) library: Library,
    /// The shared folder.
    root: OwnedFd,
    read_only: bool,
    tables: Mutex<Tables>,
}

impl Session {
    /// A mount that begins, and what of `capable` it uses. Clears the file mode mask of the thread, or of the process if that is not its own.
    ///
    /// # Errors
    /// If the folder is gone, or the host is out of something.
    pub(super) fn begin(
        folder: &File,
        capable: FsOptions,
        most: usize,
        read_only: bool,
    ) -> io::Result<(Self, FsOptions)> {
        let root = OwnedFd::from(folder.try_clone()?);
        let agreed = capable & wanted();
        let library = PassthroughFs::new(Config {
            // The folder that was opened when the device was made, wherever it is now. It outlives this call.
            root_dir: format!("/proc/self/fd/{}/.", root.as_raw_fd()),
            entry_timeout: VALID,
            attr_timeout: VALID,
            cache_policy: CachePolicy::Auto,
            xattr: true,
            killpriv_v2: true,
            // Or else the library remembers what the guest has forgotten.
            use_host_ino: true,
            allow_direct_io: false,
            ..Config::default()
        })?;
        library.init(agreed)?;
        let (attributes, _) = library.getattr(&Context::default(), ROOT, None)?;
        let node = Node {
            place: Place::Library(ROOT),
            ino: attributes.st_ino,
            kind: attributes.st_mode & libc::S_IFMT,
            lookups: 1,
            held: 1,
            open: 0,
        };
        Ok((Self { library, root, read_only, tables: Mutex::new(Tables::new(node, most)) }, agreed))
    }

    /// The mount that `saved` was, on the folder as it is now.
    ///
    /// # Errors
    /// As for [`Session::begin`].
    pub(super) fn again(folder: &File, saved: &FsSession, most: usize, read_only: bool) -> io::Result<Self> {
        let features = FsOptions::from_bits_truncate(saved.features);
        let (session, _) = Self::begin(folder, features, most, read_only)?;
        {
            let mut tables = session.tables();
            for node in &saved.nodes {
                let place = node.path.as_ref().map_or(Place::Gone, |path| Place::Saved(path.0.clone()));
                let FsNode { ino, kind, lookups, .. } = *node;
                tables.put_node(node.id, Node { place, ino, kind, lookups, held: 0, open: 0 });
            }
            for handle in &saved.handles {
                let FsHandle { node, flags, directory, .. } = *handle;
                let handle_place = Place::Saved(Vec::new());
                let saved = Handle { node, inode: 0, place: handle_place, flags, directory };
                tables.put_handle(handle.id, saved);
            }
            (tables.next_node, tables.next_handle) = (saved.next_node, saved.next_handle);
        }
        Ok(session)
    }

    /// What another life needs to go on with this mount. Nothing in it is a path of the host: all are beneath the folder.
    pub(super) fn save(&self, features: FsOptions) -> FsSession {
        let tables = self.tables();
        let root = self.path(ROOT).ok();
        let nodes = tables.nodes.iter().filter(|(id, _)| **id != ROOT);
        let nodes = nodes.map(|(id, node)| {
            let path = match &node.place {
                Place::Library(inode) => root.as_ref().and_then(|root| self.path_beneath(*inode, root)),
                Place::Saved(path) => Some(path.clone()),
                Place::Gone => None,
            };
            let path = path.map(Hex);
            FsNode { id: *id, path, ino: node.ino, kind: node.kind, lookups: node.lookups }
        });
        let handles = tables.handles.iter().map(|(id, handle)| {
            let Handle { node, flags, directory, .. } = *handle;
            FsHandle { id: *id, node, flags, directory }
        });
        FsSession {
            features: features.bits(),
            next_node: tables.next_node,
            next_handle: tables.next_handle,
            nodes: nodes.collect(),
            handles: handles.collect(),
        }
    }

    /// The tables. Nobody calls the library with them in hand.
    pub(super) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The library's number of the guest's `node`.
    ///
    /// # Errors
    /// If the guest has no such node, or what it was is gone since the state was saved.
    pub(super) fn inode(&self, node: u64) -> io::Result<u64> {
        let (path, ino, kind) = {
            let tables = self.tables();
            let found = tables.nodes.get(&node).ok_or(Errno::STALE)?;
            match &found.place {
                Place::Library(inode) => return Ok(*inode),
                Place::Gone => return Err(Errno::STALE.into()),
                Place::Saved(path) => (path.clone(), found.ino, found.kind),
            }
        };
        match self.walk(&path) {
            Ok(entry) if entry.attr.st_ino == ino && entry.attr.st_mode & libc::S_IFMT == kind => {
                self.tables().found(node, entry.inode);
                Ok(entry.inode)
            }
            other => {
                if let Ok(entry) = other {
                    self.release(entry.inode);
                }
                self.tables().lost(node);
                Err(Errno::STALE.into())
            }
        }
    }

    /// What is at `path` beneath the folder now. The library has given it once.
    fn walk(&self, path: &[u8]) -> io::Result<Entry> {
        let mut at = ROOT;
        let mut found = Err(Errno::NOENT.into());
        for component in path.split(|byte| *byte == b'/') {
            let name = CString::new(component)?;
            let entry =
                words::name(&name).and_then(|name| self.library.lookup(&Context::default(), at, name));
            if at != ROOT {
                self.release(at);
            }
            let entry = entry?;
            at = entry.inode;
            found = Ok(entry);
        }
        found
    }

    /// The library is to forget that it gave `inode` once.
    pub(super) fn release(&self, inode: u64) {
        self.library.forget(&Context::default(), inode, 1);
    }

    /// The library's number of a node that is to be walked from: a directory that is still beneath the folder.
    ///
    /// # Errors
    /// As for [`Session::inode`], and if it is no directory or not beneath the folder.
    pub(super) fn directory(&self, node: u64) -> io::Result<u64> {
        let inode = self.inode(node)?;
        if node != ROOT {
            if self.tables().nodes.get(&node).is_none_or(|node| node.kind != libc::S_IFDIR) {
                return Err(Errno::NOTDIR.into());
            }
            self.path_beneath(inode, &self.path(ROOT)?).ok_or(Errno::STALE)?;
        }
        Ok(inode)
    }

    /// Where the host has what the library calls `inode`.
    fn path(&self, inode: u64) -> io::Result<PathBuf> {
        self.library.readlinkat_proc_file(inode)
    }

    /// Where `inode` is beneath the folder, which is at `root`. `None` if it is not.
    fn path_beneath(&self, inode: u64, root: &std::path::Path) -> Option<Vec<u8>> {
        let path = self.path(inode).ok()?;
        let beneath = path.strip_prefix(root).ok().filter(|beneath| !beneath.as_os_str().is_empty())?;
        Some(beneath.as_os_str().as_encoded_bytes().to_vec())
    }

    /// A descriptor of what the library calls `inode`, which it lends to nobody: found by its path beneath the folder, without
    /// following any link, and compared.
    ///
    /// # Errors
    /// If it is not beneath the folder or is being moved.
    fn open_again(&self, inode: u64) -> io::Result<OwnedFd> {
        let path = if inode == ROOT {
            b".".to_vec()
        } else {
            self.path_beneath(inode, &self.path(ROOT)?).ok_or(Errno::STALE)?
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        let file = rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve);
        let file = file.map_err(|error| match error {
            Errno::NOSYS => Errno::PERM,
            _ => Errno::STALE,
        })?;
        let found = rustix::fs::fstat(&file)?;
        let (wanted, _) = self.library.getattr(&Context::default(), inode, None)?;
        if (found.st_dev, found.st_ino) != (wanted.st_dev, wanted.st_ino) {
            return Err(Errno::STALE.into());
        }
        Ok(file)
    }

    /// Give the library's `inode` another name in its `directory`.
    ///
    /// # Errors
    /// The host's, and if either is not beneath the folder.
    pub(super) fn link(&self, inode: u64, directory: u64, name: &CStr) -> io::Result<()> {
        let (file, directory) = (self.open_again(inode)?, self.open_again(directory)?);
        // To name the descriptor itself (AT_EMPTY_PATH) needs root; its link in /proc is what it is open on, followed once.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = rustix::fs::AtFlags::SYMLINK_FOLLOW;
        Ok(rustix::fs::linkat(rustix::fs::CWD, path, directory, name, flags)?)
    }

    /// What the library found, as the guest's.
    ///
    /// # Errors
    /// If the guest holds too many nodes.
    pub(super) fn entry(&self, entry: Entry) -> io::Result<Entry> {
        let given = self.tables().give(entry.inode, entry.attr.st_ino, entry.attr.st_mode & libc::S_IFMT);
        match given {
            Ok(inode) => Ok(Entry { inode, ..entry }),
            Err(error) => {
                ratelog::warn(format_args!(
                    "the guest holds as many shared files as this host lets it: raise the limit of open files (ulimit -n)"
                ));
                self.release(entry.inode);
                Err(error)
            }
        }
    }

    /// Let the library have no more than it may, between two requests.
    pub(super) fn trim(&self) {
        let mut root = None;
        // Some have no name, and stay.
        for _ in 0..TRIMMED {
            let oldest = self.tables().oldest();
            let Some((node, inode)) = oldest else { return };
            if root.is_none() {
                root = self.path(ROOT).ok();
            }
            let path = root.as_ref().and_then(|root| self.path_beneath(inode, root));
            let parked = self.tables().park(node, path);
            if let Some(gone) = parked {
                self.library.forget(&Context::default(), gone.inode, gone.count);
            }
        }
    }

    /// The guest gives `node` back.
    pub(super) fn forget(&self, node: u64, count: u64) {
        let gone = self.tables().forget(node, count);
        if let Some(gone) = gone {
            self.library.forget(&Context::default(), gone.inode, gone.count);
        }
    }

    /// The library's numbers of the open file `handle` of `node`, and of that node.
    ///
    /// # Errors
    /// If the guest has no such file open, or it is gone since the state was saved.
    pub(super) fn open_file(&self, node: u64, handle: u64, directory: bool) -> io::Result<(u64, u64)> {
        let flags = {
            let tables = self.tables();
            let found = tables.handle(node, handle, directory)?;
            match found.place {
                Place::Library(opened) => return Ok((found.inode, opened)),
                Place::Gone => return Err(Errno::STALE.into()),
                Place::Saved(_) => found.flags,
            }
        };
        let opened = self.reopen(node, flags, directory);
        let mut tables = self.tables();
        let found = tables.handles.get_mut(&handle).ok_or(Errno::BADF)?;
        match opened {
            Ok((inode, opened, flags)) => {
                (found.inode, found.place, found.flags) = (inode, Place::Library(opened), flags);
                Ok((inode, opened))
            }
            Err(_) => {
                found.place = Place::Gone;
                Err(Errno::STALE.into())
            }
        }
    }

    /// How the host has the open file `handle`. The library takes other flags for a change of them, which it is not to try.
    pub(super) fn flags(&self, handle: u64) -> io::Result<u32> {
        Ok(self.tables().handles.get(&handle).ok_or(Errno::BADF)?.flags)
    }

    /// Open what is called `name` in the library's `parent` already.
    ///
    /// # Errors
    /// The host's; then the library has nothing of it.
    pub(super) fn open_found(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions)> {
        let entry = self.library.lookup(context, parent, name)?;
        match self.library.open(context, entry.inode, flags, fuse_flags) {
            Ok((opened, options, _)) => Ok((entry, opened, options)),
            Err(error) => {
                self.release(entry.inode);
                Err(error)
            }
        }
    }

    /// Open what was open when the state was saved. Says what the library calls it, and how it is open.
    fn reopen(&self, node: u64, flags: u32, directory: bool) -> io::Result<(u64, u64, u32)> {
        let inode = if directory { self.directory(node)? } else { self.inode(node)? };
        let context = Context::default();
        // What was in it then is not to be cut off now.
        let flags = words::open_flags(flags & !(libc::O_TRUNC as u32), self.read_only)?;
        let opened = if directory {
            self.library.opendir(&context, inode, flags)?.0
        } else {
            self.library.open(&context, inode, flags, 0)?.0
        };
        Ok((inode, opened.ok_or(Errno::STALE)?, flags))
    }
}
