//! Files and trees on their way into a guest and out of it, as tar archives.
//!
//! What comes out of a guest is hostile: a tree is unpacked beneath the directory that it is to be, a file in a private directory of its own,
//! from which it is then renamed. So a guest makes no name that was not asked for, and a file is there whole or not at all.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use agent::frame::MAX_FRAME;
use agent::message::{Ended, Looked, Pack, Request, Unpack};
use anyhow::{Context as _, Result, bail};
use images::tree::{self, Options, Packing};
use rustix::fs::FileType;
use vmm::agent::client::{AgentError, Said, Sender, Talk};

use crate::exit;
use crate::guest::Guest;
use crate::held::{Aside, Dir};
use crate::progress::Bar;

/// Whose files in a guest are, unless they keep their owners.
const ROOT: &str = "0:0";

/// How long the guest may take to look at a path, on whatever disk.
pub const LOOK: Duration = Duration::from_secs(60);

/// Where a tree comes to be here.
#[derive(Debug)]
pub enum Landing {
    /// It is called so in this directory.
    Named(Dir, OsString),
    /// What is in it goes into this directory.
    Content(Dir),
}

/// What is at a path in the guest.
pub fn look(guest: &Guest, path: &str) -> Result<Looked> {
    let mut talk = guest.ask(&Request::Look { path: path.to_owned() })?;
    talk.answer(LOOK)?.read_as().context("the guest's agent answers with nonsense")
}

/// Send `source` to be `name` in the guest's directory `dir`; if it is a directory and `name` is `.`, what is in it.
pub fn put(
    guest: &Guest,
    source: &Path,
    is_dir: bool,
    follow: bool,
    dir: &str,
    name: &Path,
    owners: bool,
) -> Result<()> {
    let real = if follow || is_dir { source.canonicalize()? } else { source.to_owned() };
    let (below, from) = match is_dir {
        true => (real.as_path(), OsStr::new(".")),
        false => {
            let parent = real.parent().filter(|parent| !parent.as_os_str().is_empty());
            (parent.unwrap_or(Path::new(".")), real.file_name().context("it has no name")?)
        }
    };
    let below = File::open(below)?;
    let talk = guest.ask(&unpack_in(dir, owners))?;
    let mut put = Put::new(talk.sender(), format!("copying {}", source.display()));
    let packing = Packing { from: from.into(), name: name.to_owned(), owners };
    let packed = tree::pack(below.as_fd(), &mut put, &packing).map_err(anyhow::Error::from);
    finish(talk, packed.and_then(|_| Ok(put.end()?)))
}

/// Send the archive on standard input to be unpacked in the guest's directory `dir`.
pub fn put_stream(guest: &Guest, dir: &str, owners: bool) -> Result<()> {
    let talk = guest.ask(&unpack_in(dir, owners))?;
    let mut put = Put::new(talk.sender(), "copying".to_owned());
    let copied = io::copy(&mut io::stdin().lock(), &mut put).and_then(|_| put.end());
    finish(talk, copied.context("cannot copy standard input"))
}

fn unpack_in(dir: &str, owners: bool) -> Request {
    let owner = (!owners).then(|| ROOT.to_owned());
    Request::Unpack(Unpack { dir: dir.to_owned(), rename: None, owner })
}

/// Hear what became of it. What the guest says is the reason of what failed here for its sake.
fn finish(mut talk: Talk, sent: Result<()>) -> Result<()> {
    let sender = talk.sender();
    if sent.as_ref().is_err_and(|error| !is_connection(error)) {
        sender.close();
        return sent;
    }
    let ended = loop {
        match talk.next() {
            Ok(Said::Ended(Ended::Exited(0))) => break sent,
            Ok(Said::Ended(ended)) => break Err(anyhow::anyhow!("the guest's agent ended with {ended:?}")),
            Ok(_) => {}
            Err(error) => break Err(error.into()),
        }
    };
    sender.close();
    ended
}

/// Whether it failed by the connection's end.
fn is_connection(error: &anyhow::Error) -> bool {
    let kinds = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| kinds.contains(&cause.kind()))
}

/// Fetch `path` from the guest: with `follow` what a link leads to, and then a file is one. Says how many bytes of data came.
pub fn get(
    guest: &Guest,
    path: &str,
    is_dir: bool,
    follow: bool,
    landing: &Landing,
    options: &Options,
) -> Result<u64> {
    match landing {
        Landing::Content(dir) if is_dir => get_into(guest, pack_of(path, true, Some(".")), dir, options),
        Landing::Named(dir, name) if is_dir => {
            let made = dir.make(Path::new(name))?;
            get_into(guest, pack_of(path, true, Some(".")), &made, options)
        }
        Landing::Content(_) => bail!("it is no directory"),
        Landing::Named(dir, name) => {
            let aside = Aside::new(dir, ASIDE)
                .with_context(|| format!("cannot write in {}", dir.path().display()))?;
            let bytes = get_into(guest, pack_of(path, follow, None), aside.dir(), options)?;
            let fits = |kind| kind == FileType::RegularFile || !follow && kind != FileType::Directory;
            if !aside.give(name, fits)? {
                bail!("the guest sent something else than one file");
            }
            Ok(bytes)
        }
    }
}

/// How files come out of a guest, whose owners are kept or are the caller.
pub fn options(owners: bool) -> Options {
    Options { owners, privileges: owners, ..Options::copy() }
}

fn pack_of(path: &str, follow: bool, name: Option<&str>) -> Request {
    Request::Pack(Pack { path: path.to_owned(), follow, name: name.map(str::to_owned) })
}

/// Says how many bytes of data came.
fn get_into(guest: &Guest, request: Request, dir: &Dir, options: &Options) -> Result<u64> {
    let mut get = Get::new(guest.ask(&request)?, "copying".to_owned());
    let unpacked = tree::unpack(&mut get, dir.as_fd(), options).map_err(anyhow::Error::from);
    let sender = get.talk.sender();
    // The archive's end is not the last word.
    let all = unpacked.and_then(|unpacked| {
        io::copy(&mut get, &mut io::sink())?;
        Ok(unpacked)
    });
    sender.close();
    let all = all?;
    if all.devices > 0 {
        crate::terminal::note(&format!("skiff: {} device nodes are left out", all.devices));
    }
    Ok(all.bytes)
}

/// Print `path` of the guest as a tar archive. Says the exit code.
pub fn get_stream(guest: &Guest, path: &str, follow: bool) -> Result<u8> {
    let mut get = Get::new(guest.ask(&pack_of(path, follow, None))?, "copying".to_owned());
    let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    match io::copy(&mut get, &mut stdout) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {
            Ok(exit::SIGNAL.saturating_add(libc::SIGPIPE as u8))
        }
        copied => copied.map(|_| exit::SUCCESS).with_context(|| format!("cannot copy {path}")),
    }
}

/// How the name begins of what is there only while a file is fetched.
pub const ASIDE: &str = ".skiff-cp-";

/// An archive on its way into the guest.
struct Put {
    sender: Sender,
    frame: Vec<u8>,
    gone: u64,
    bar: Bar,
}

impl Put {
    fn new(sender: Sender, what: String) -> Self {
        Self { sender, frame: Vec::with_capacity(MAX_FRAME), gone: 0, bar: Bar::new(what) }
    }

    fn end(mut self) -> io::Result<()> {
        self.flush()?;
        self.sender.input_end()
    }
}

impl Write for Put {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = MAX_FRAME.saturating_sub(self.frame.len());
        let part = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.frame.extend_from_slice(part);
        if self.frame.len() >= MAX_FRAME {
            self.flush()?;
        }
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.frame.is_empty() {
            self.sender.input(&self.frame)?;
            self.gone = self.gone.saturating_add(self.frame.len() as u64);
            self.frame.clear();
            self.bar.count(self.gone);
        }
        Ok(())
    }
}

/// An archive on its way out of the guest. It ends with the agent's last word.
struct Get {
    talk: Talk,
    bytes: Vec<u8>,
    at: usize,
    ended: bool,
    come: u64,
    bar: Bar,
}

impl Get {
    fn new(talk: Talk, what: String) -> Self {
        let (bytes, at, ended, come) = Default::default();
        Self { talk, bytes, at, ended, come, bar: Bar::new(what) }
    }
}

impl Read for Get {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at >= self.bytes.len() && !self.ended {
            match self.talk.next() {
                Ok(Said::Output(bytes)) => {
                    self.come = self.come.saturating_add(bytes.len() as u64);
                    (self.bytes, self.at) = (bytes, 0);
                    self.bar.count(self.come);
                }
                Ok(Said::Ended(Ended::Exited(0))) => self.ended = true,
                Ok(Said::Ended(_)) => return Err(io::Error::other("the guest's agent gave up")),
                Ok(Said::Error(_) | Said::Message(_)) => {}
                Err(AgentError::Broken(error)) => return Err(error),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let len = rest.len().min(into.len());
        if let (Some(into), Some(rest)) = (into.get_mut(..len), rest.get(..len)) {
            into.copy_from_slice(rest);
        }
        self.at = self.at.saturating_add(len);
        Ok(len)
    }
}
