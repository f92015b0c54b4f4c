//! The Unix socket on which the host's programs reach the guest.
//!
//! It belongs to the VM: it is there before the guest has a driver, survives its reboots, and is removed with the VM.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, SocketFlags};

use super::host::stream_socket;

/// The longest path of a Unix socket in bytes, its final NUL not counted (`sun_path` has 108).
const MAX_SUN_PATH: usize = 107;
/// What the guest's connections add to the path at most: `_4294967295`.
const MAX_SUFFIX: usize = 11;
/// The longest path of a vsock's socket, in bytes.
pub const MAX_VSOCK_PATH: usize = MAX_SUN_PATH - MAX_SUFFIX;
/// Clients that wait to be accepted, while the guest has no driver.
const BACKLOG: i32 = 1024;
/// How long another VM that makes its socket in the same directory is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// The socket of a vsock device cannot be had. Each message names it and the fix.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The path does not fit in a socket's address.
    #[error(
        "the vsock path {path} has {len} bytes, which is more than the {MAX_VSOCK_PATH} that a Unix socket can have here: \
         use a shorter path"
    )]
    TooLong {
        /// As it was given.
        path: PathBuf,
        /// Its length.
        len: usize,
    },
    /// Somebody listens there.
    #[error("the vsock path {0} is in use by another VM or program: use another path, or stop that one")]
    InUse(PathBuf),
    /// Something else has that name.
    #[error("the vsock path {0} exists and is not a socket: use another path, or remove it")]
    NotASocket(PathBuf),
    /// The host does not let it be made.
    #[error("cannot make the vsock socket {path}: check that its directory exists and can be written")]
    Bind {
        /// As it was given.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
}

/// A listening socket, which nobody but this user can connect to. Its file is removed when it is dropped.
#[derive(Debug)]
pub struct VsockListener {
    path: PathBuf,
    socket: OwnedFd,
    /// Device and inode of its file.
    identity: Option<(u64, u64)>,
}

impl VsockListener {
    /// Listen at `path`. What a VM left there that did not end by itself is replaced.
    ///
    /// # Errors
    /// If the path cannot be had.
    pub fn bind(path: &Path) -> Result<Self, VsockError> {
        let len = path.as_os_str().len();
        if len > MAX_VSOCK_PATH {
            return Err(VsockError::TooLong { path: path.to_owned(), len });
        }
        Self::bind_any(path)
    }

    /// Listen where the guest's connections to the host's `port` arrive.
    ///
    /// # Errors
    /// If the path cannot be had.
    pub fn of_port(&self, port: u32) -> Result<Self, VsockError> {
        Self::bind_any(&self.path_of(port))
    }

    fn bind_any(path: &Path) -> Result<Self, VsockError> {
        let failed = |source: io::Error| VsockError::Bind { path: path.to_owned(), source };
        // Held while this one looks, removes and binds: of two VMs that find the same old socket one must see the other's.
        let _turn = take_turn(path);
        remove_stale(path)?;
        let socket = stream_socket().map_err(|errno| failed(errno.into()))?;
        let bound = listen(&socket, path);
        bound.map_err(|errno| match errno {
            Errno::ADDRINUSE => VsockError::InUse(path.to_owned()),
            other => failed(other.into()),
        })?;
        let identity = identity(path);
        Ok(Self { path: path.to_owned(), socket, identity })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next client, its socket non-blocking.
    ///
    /// # Errors
    /// [`Errno::AGAIN`] if nobody waits; others if the host is out of file descriptors or memory.
    pub fn accept(&self) -> rustix::io::Result<OwnedFd> {
        loop {
            match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                other => return other,
            }
        }
    }

    /// The path at which the guest's connections to `port` are answered.
    pub(super) fn path_of(&self, port: u32) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        path.into()
    }
}

impl AsFd for VsockListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for VsockListener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for VsockListener {
    fn drop(&mut self) {
        // Whoever replaced it keeps theirs.
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = path.symlink_metadata().ok()?;
    Some((found.dev(), found.ino()))
}

/// Lock the directory of `path` against other VMs, if that can be done soon. Unlocked when dropped.
fn take_turn(path: &Path) -> Option<File> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = File::open(directory).ok()?;
    let start = Instant::now();
    while rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err() {
        if start.elapsed() > PATIENCE {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Some(directory)
}

/// Remove the socket at `path` if nobody listens on it.
fn remove_stale(path: &Path) -> Result<(), VsockError> {
    let failed = |source: io::Error| VsockError::Bind { path: path.to_owned(), source };
    let found = match path.symlink_metadata() {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !found.file_type().is_socket() {
        return Err(VsockError::NotASocket(path.to_owned()));
    }
    let probe = stream_socket().map_err(|errno| failed(errno.into()))?;
    let address = SocketAddrUnix::new(path).map_err(|errno| failed(errno.into()))?;
    match rustix::net::connect(&probe, &address) {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(failed),
        Err(Errno::NOENT) => Ok(()),
        // It answers, is too busy to, is of another type, or is another user's.
        _ => Err(VsockError::InUse(path.to_owned())),
    }
}

fn listen(socket: &OwnedFd, path: &Path) -> rustix::io::Result<()> {
    // The file gets the mode of the unbound socket (unix(7) is silent, Linux has always done so): at no time can others
    // connect, and the process's umask is left alone.
    rustix::fs::fchmod(socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(socket, BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn nobody_else_can_connect_and_the_file_goes_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        let listener = VsockListener::bind(&path).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
        assert_eq!(listener.accept().unwrap_err(), Errno::AGAIN);
        let _client = UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn what_was_left_behind_is_replaced_and_what_lives_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        // A socket whose process is gone.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let first = VsockListener::bind(&path).unwrap();
        let text = VsockListener::bind(&path).unwrap_err().to_string();
        assert!(text.contains("is in use by another VM") && text.contains("vm.sock"), "{text}");
        // Somebody takes the name away: it stays theirs.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "mine").unwrap();
        drop(first);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        assert!(matches!(VsockListener::bind(&path), Err(VsockError::NotASocket(_))));
    }

    #[test]
    fn paths_that_cannot_be_are_refused_with_a_reason() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().as_os_str().len() + 1;
        let longest = directory.path().join("x".repeat(MAX_VSOCK_PATH - base));
        let listener = VsockListener::bind(&longest).unwrap();
        SocketAddrUnix::new(listener.path_of(u32::MAX)).unwrap();
        let text = VsockListener::bind(&directory.path().join("x".repeat(MAX_VSOCK_PATH + 1 - base)));
        assert!(text.unwrap_err().to_string().ends_with("use a shorter path"));
        let text = VsockListener::bind(&directory.path().join("no/vm.sock")).unwrap_err().to_string();
        assert!(text.contains("check that its directory exists"), "{text}");
    }

    #[test]
    fn of_many_at_once_one_gets_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        drop(UnixListener::bind(&path).unwrap());
        let all: Vec<_> = std::thread::scope(|scope| {
            let one = || scope.spawn(|| VsockListener::bind(&path));
            let threads: Vec<_> = (0..8).map(|_| one()).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(all.iter().filter(|bound| bound.is_ok()).count(), 1, "{all:?}");
    }
}
