//! Every request of FUSE on files: what the guest says is checked and put in the host's terms, and the library does it.
//!
//! The library's server reads requests and writes answers; this stands between the two. Called on the device's thread alone.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, FsOptions, OpenOptions, SetattrValid, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, GetxattrReply, ListxattrReply, ZeroCopyReader, ZeroCopyWriter,
};
use rustix::io::Errno;

use super::session::{Library, Session};
use super::share::Share;
use super::table::{Handle, Place};
use super::words::{self, MOST_ATTRIBUTE, MOST_DATA};

impl Share {
    /// What the library found, as the guest's, with owners as it sees them.
    fn shown(&self, session: &Session, entry: Entry) -> io::Result<Entry> {
        let entry = session.entry(entry)?;
        Ok(Entry { attr: self.owners().shown(entry.attr), ..entry })
    }

    /// Make something called `name` in `parent`, and show it.
    fn make(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        make: impl FnOnce(&Session, &Context, u64, &CStr) -> io::Result<Entry>,
    ) -> io::Result<Entry> {
        let session = self.writable()?;
        let name = words::name(name)?;
        let parent = session.directory(parent)?;
        let entry = make(&session, &self.owners().acting(context), parent, name)?;
        self.shown(&session, entry)
    }

    /// Have the library do something with its numbers of an open file and of its node, that changes neither.
    fn with_open<T>(
        &self,
        node: u64,
        handle: u64,
        directory: bool,
        act: impl FnOnce(&Library, u64, u64) -> io::Result<T>,
    ) -> io::Result<T> {
        let session = self.session()?;
        let (inode, opened) = session.open_file(node, handle, directory)?;
        act(&session.library, inode, opened)
    }

    /// The guest has the file open no more: neither has the library, if it had.
    fn close(
        &self,
        node: u64,
        handle: u64,
        directory: bool,
        act: impl FnOnce(&Library, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let session = self.session()?;
        session.tables().handle(node, handle, directory)?;
        let Some(closed) = session.tables().close(handle) else { return Err(Errno::BADF.into()) };
        let Place::Library(opened) = closed.place else { return Ok(()) };
        act(&session.library, closed.inode, opened)
    }

    /// Entries of a directory, each looked up. `add` says how many bytes it took, 0 if there was no room, and whether the guest
    /// was given the entry.
    fn list(
        &self,
        context: &Context,
        node: u64,
        handle: u64,
        (size, offset, plus): (u32, u64, bool),
        add: &mut dyn FnMut(&Session, DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let session = self.session()?;
        session.directory(node)?;
        let (inode, opened) = session.open_file(node, handle, true)?;
        let size = words::list_size(size, plus);
        session.library.readdirplus(context, inode, opened, size, offset, &mut |name, entry| {
            let found = entry.inode;
            let added = add(&session, name, entry);
            if added.is_err() {
                // The library takes back what did not fit, and not what failed.
                session.release(found);
            }
            added
        })
    }
}

impl FileSystem for Share {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        self.begin(capable)
    }

    fn destroy(&self) {
        self.end();
    }

    fn lookup(&self, context: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        let session = self.session()?;
        let name = words::name(name)?;
        let parent = session.directory(parent)?;
        let entry = session.library.lookup(context, parent, name)?;
        self.shown(&session, entry)
    }

    fn forget(&self, _: &Context, node: u64, count: u64) {
        if let Ok(session) = self.session() {
            session.forget(node, count);
        }
    }

    fn getattr(&self, context: &Context, node: u64, handle: Option<u64>) -> io::Result<(stat64, Duration)> {
        let session = self.session()?;
        let inode = session.inode(node)?;
        let opened = handle.map(|handle| session.open_file(node, handle, false)).transpose()?;
        let (attributes, valid) =
            session.library.getattr(context, inode, opened.map(|(_, opened)| opened))?;
        Ok((self.owners().shown(attributes), valid))
    }

    fn setattr(
        &self,
        context: &Context,
        node: u64,
        mut wanted: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        let session = self.writable()?;
        let inode = session.inode(node)?;
        let opened = handle.map(|handle| session.open_file(node, handle, false)).transpose()?;
        let opened = opened.map(|(_, opened)| opened);
        let (current, _) = session.library.getattr(context, inode, opened)?;
        let valid = self.owners().change(&wanted, &self.owners().shown(current), valid)?;
        wanted.st_mode = self.owners().mode(wanted.st_mode & 0o7777);
        let (attributes, time) = session.library.setattr(context, inode, wanted, opened, valid)?;
        Ok((self.owners().shown(attributes), time))
    }

    fn readlink(&self, context: &Context, node: u64) -> io::Result<Vec<u8>> {
        let session = self.session()?;
        session.library.readlink(context, session.inode(node)?)
    }

    fn symlink(&self, context: &Context, target: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        let target = words::target(target)?;
        self.make(context, parent, name, |session, context, parent, name| {
            session.library.symlink(context, target, parent, name)
        })
    }

    fn mknod(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        _: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        let mode = self.owners().mode(words::node_mode(mode)?);
        self.make(context, parent, name, |session, context, parent, name| {
            session.library.mknod(context, parent, name, mode, 0, umask & 0o777)
        })
    }

    fn mkdir(&self, context: &Context, parent: u64, name: &CStr, mode: u32, umask: u32) -> io::Result<Entry> {
        self.make(context, parent, name, |session, context, parent, name| {
            session.library.mkdir(context, parent, name, self.owners().mode(mode & 0o7777), umask & 0o777)
        })
    }

    fn unlink(&self, context: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        let session = self.writable()?;
        session.library.unlink(context, session.directory(parent)?, words::name(name)?)
    }

    fn rmdir(&self, context: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        let session = self.writable()?;
        session.library.rmdir(context, session.directory(parent)?, words::name(name)?)
    }

    fn rename(
        &self,
        context: &Context,
        from: u64,
        name: &CStr,
        to: u64,
        new_name: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        let session = self.writable()?;
        let (name, new_name) = (words::name(name)?, words::name(new_name)?);
        let flags = words::rename_flags(flags)?;
        let (from, to) = (session.directory(from)?, session.directory(to)?);
        session.library.rename(context, from, name, to, new_name, flags)
    }

    fn link(&self, context: &Context, node: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        let session = self.writable()?;
        let inode = session.inode(node)?;
        self.make(context, parent, name, |session, context, parent, name| {
            session.link(inode, parent, name)?;
            session.library.lookup(context, parent, name)
        })
    }

    fn open(
        &self,
        context: &Context,
        node: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let session = self.session()?;
        let flags = words::open_flags(flags, self.read_only())?;
        let inode = session.inode(node)?;
        session.tables().room_to_open()?;
        let (opened, options, _) = session.library.open(context, inode, flags, fuse_flags)?;
        let place = Place::Library(opened.ok_or(Errno::IO)?);
        let handle = Handle { node, inode, place, flags, directory: false };
        Ok((Some(session.tables().opened(handle)?), options, None))
    }

    fn create(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        asked: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        let session = self.writable()?;
        let flags = words::open_flags(asked.flags, false)?;
        let name = words::name(name)?;
        let parent = session.directory(parent)?;
        session.tables().room_to_open()?;
        // What is there already is opened below: the library would keep what it found and cannot open.
        let made = CreateIn {
            flags: flags | libc::O_EXCL as u32,
            mode: self.owners().mode(asked.mode & 0o7777),
            umask: asked.umask & 0o777,
            fuse_flags: asked.fuse_flags,
        };
        let acting = self.owners().acting(context);
        let exclusive = asked.flags & libc::O_EXCL as u32 != 0;
        let (entry, opened, options, flags) = match session.library.create(&acting, parent, name, made) {
            Err(error) if !exclusive && error.raw_os_error() == Some(libc::EEXIST) => {
                let (entry, opened, options) =
                    session.open_found(context, parent, name, flags, asked.fuse_flags)?;
                (entry, opened, options, flags)
            }
            created => {
                let (entry, opened, options, _) = created?;
                (entry, opened, options, made.flags)
            }
        };
        let (inode, opened) = (entry.inode, opened.ok_or(Errno::IO)?);
        let entry = self.shown(&session, entry).inspect_err(|_| {
            // Nothing is left to be done if that fails.
            let _ = session.library.release(context, inode, 0, opened, false, false, None);
        })?;
        let place = Place::Library(opened);
        let handle = Handle { node: entry.inode, inode, place, flags, directory: false };
        let handle = session.tables().opened(handle)?;
        Ok((entry, Some(handle), options, None))
    }

    fn read(
        &self,
        context: &Context,
        node: u64,
        handle: u64,
        to: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        owner: Option<u64>,
        _: u32,
    ) -> io::Result<usize> {
        let session = self.session()?;
        let (inode, opened) = session.open_file(node, handle, false)?;
        let flags = session.flags(handle)?;
        session.library.read(context, inode, opened, to, size.min(MOST_DATA), offset, owner, flags)
    }

    fn write(
        &self,
        context: &Context,
        node: u64,
        handle: u64,
        from: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        owner: Option<u64>,
        delayed: bool,
        _: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        let session = self.writable()?;
        let (inode, opened) = session.open_file(node, handle, false)?;
        let (size, flags) = (size.min(MOST_DATA), session.flags(handle)?);
        session.library.write(context, inode, opened, from, size, offset, owner, delayed, flags, fuse_flags)
    }

    fn flush(&self, context: &Context, node: u64, handle: u64, owner: u64) -> io::Result<()> {
        self.with_open(node, handle, false, |library, inode, opened| {
            library.flush(context, inode, opened, owner)
        })
    }

    fn fsync(&self, context: &Context, node: u64, datasync: bool, handle: u64) -> io::Result<()> {
        self.with_open(node, handle, false, |library, inode, opened| {
            library.fsync(context, inode, datasync, opened)
        })
    }

    fn fallocate(
        &self,
        context: &Context,
        node: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let session = self.writable()?;
        words::fallocate_mode(mode)?;
        let (inode, opened) = session.open_file(node, handle, false)?;
        session.library.fallocate(context, inode, opened, mode, offset, length)
    }

    fn release(
        &self,
        context: &Context,
        node: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        flock: bool,
        owner: Option<u64>,
    ) -> io::Result<()> {
        self.close(node, handle, false, |library, inode, opened| {
            library.release(context, inode, flags, opened, flush, flock, owner)
        })
    }

    fn statfs(&self, context: &Context, node: u64) -> io::Result<statvfs64> {
        let session = self.session()?;
        session.library.statfs(context, session.inode(node)?)
    }

    fn setxattr(
        &self,
        context: &Context,
        node: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        let session = self.writable()?;
        let name = words::attribute(name, self.owners().is_root())?;
        session.library.setxattr(context, session.inode(node)?, name, value, flags)
    }

    fn getxattr(&self, context: &Context, node: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        let session = self.session()?;
        let name = words::attribute(name, self.owners().is_root())?;
        session.library.getxattr(context, session.inode(node)?, name, size.min(MOST_ATTRIBUTE))
    }

    fn listxattr(&self, context: &Context, node: u64, size: u32) -> io::Result<ListxattrReply> {
        let session = self.session()?;
        let all = match session.library.listxattr(context, session.inode(node)?, MOST_ATTRIBUTE)? {
            ListxattrReply::Names(all) => all,
            ListxattrReply::Count(_) => Vec::new(),
        };
        let open = words::open_attributes(&all, self.owners().is_root());
        // At most MOST_ATTRIBUTE bytes.
        match open.len() as u32 {
            len if size == 0 => Ok(ListxattrReply::Count(len)),
            len if len > size => Err(Errno::RANGE.into()),
            _ => Ok(ListxattrReply::Names(open)),
        }
    }

    fn removexattr(&self, context: &Context, node: u64, name: &CStr) -> io::Result<()> {
        let session = self.writable()?;
        let name = words::attribute(name, self.owners().is_root())?;
        session.library.removexattr(context, session.inode(node)?, name)
    }

    fn opendir(&self, context: &Context, node: u64, _: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        let session = self.session()?;
        let inode = session.directory(node)?;
        session.tables().room_to_open()?;
        let flags = words::use_flags(libc::O_RDONLY as u32);
        let (opened, options) = session.library.opendir(context, inode, flags)?;
        let place = Place::Library(opened.ok_or(Errno::IO)?);
        let handle = Handle { node, inode, place, flags, directory: true };
        Ok((Some(session.tables().opened(handle)?), options))
    }

    fn readdir(
        &self,
        context: &Context,
        node: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.list(context, node, handle, (size, offset, false), &mut |session, name, entry| {
            let inode = entry.inode;
            let added = add(name)?;
            if added > 0 {
                // The guest is told of a name alone.
                session.release(inode);
            }
            Ok(added)
        })
    }

    fn readdirplus(
        &self,
        context: &Context,
        node: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.list(context, node, handle, (size, offset, true), &mut |session, name, entry| {
            let (ino, kind) = (entry.attr.st_ino, entry.attr.st_mode & libc::S_IFMT);
            let given = session.tables().give(entry.inode, ino, kind)?;
            let attr = self.owners().shown(entry.attr);
            let added = add(name, Entry { inode: given, attr, ..entry });
            if !matches!(added, Ok(1..)) {
                session.tables().take_back(given);
            }
            added
        })
    }

    fn fsyncdir(&self, context: &Context, node: u64, datasync: bool, handle: u64) -> io::Result<()> {
        self.with_open(node, handle, true, |library, inode, opened| {
            library.fsyncdir(context, inode, datasync, opened)
        })
    }

    fn releasedir(&self, context: &Context, node: u64, flags: u32, handle: u64) -> io::Result<()> {
        self.close(node, handle, true, |library, inode, opened| {
            library.releasedir(context, inode, flags, opened)
        })
    }

    fn access(&self, context: &Context, node: u64, mask: u32) -> io::Result<()> {
        let session = self.session()?;
        if self.read_only() && mask as i32 & libc::W_OK != 0 {
            return Err(Errno::ROFS.into());
        }
        session.library.access(&self.owners().acting(context), session.inode(node)?, mask)
    }

    fn lseek(&self, context: &Context, node: u64, handle: u64, offset: u64, whence: u32) -> io::Result<u64> {
        // Of anything else the guest's kernel knows the answer.
        if !matches!(whence as i32, libc::SEEK_DATA | libc::SEEK_HOLE) {
            return Err(Errno::INVAL.into());
        }
        self.with_open(node, handle, false, |library, inode, opened| {
            library.lseek(context, inode, opened, offset, whence)
        })
    }
}
