//! [`Place`]: where mmdebstrap works, so that nothing of it is left on the host whenever it ends: a directory that goes with it, and as root
//! mounts that nobody else sees.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::{ptr, thread};

use rustix::rand::{GetRandomFlags, getrandom};
use rustix::thread::UnshareFlags;

use crate::child::{self, Ending, Running};
use crate::unfinished::{self, Unfinished};

/// Others may go through the directory, and no more.
const MODE: u32 = 0o711;

/// Its directory is deleted when dropped.
#[derive(Debug)]
pub struct Place {
    dir: Unfinished,
    root: bool,
}

impl Place {
    /// For root it is in the directory `work`. Who is not root is somebody else in mmdebstrap's user namespace, who may not get there: then it
    /// is in $TMPDIR.
    pub fn new(work: &Path) -> io::Result<Self> {
        let root = rustix::process::geteuid().is_root();
        let path = if root { work.join("tmp") } else { std::env::temp_dir().join(fresh()?) };
        let place = Self { dir: Unfinished::new(path), root };
        DirBuilder::new().mode(MODE).create(place.dir.path())?;
        // Whatever the umask is.
        fs::set_permissions(place.dir.path(), Permissions::from_mode(MODE))?;
        Ok(place)
    }

    /// Starts a program that works here.
    pub fn start(&self, command: &mut Command) -> io::Result<Running> {
        command.env("TMPDIR", self.dir.path());
        if !self.root {
            // Its mounts are in namespaces of its own. Files of others than the user only it can delete.
            return child::start(command, Ending::Ask);
        }
        // A child has the mounts of the thread that starts it.
        let start = || {
            let ending = if own_mounts().is_ok() { Ending::Kill } else { Ending::Ask };
            child::start(command, ending)
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("mounts".to_owned()).spawn_scoped(scope, start)?;
            thread.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What cannot be deleted is left to whoever finds it.
        let _ = unfinished::remove(self.dir.path());
    }
}

/// A name that nobody can guess: $TMPDIR is everybody's.
fn fresh() -> io::Result<String> {
    let mut bytes = [0; 8];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(format!("skiff.{:016x}", u64::from_ne_bytes(bytes)))
}

/// From now on what this thread and its children mount is theirs alone. Refused in most containers, where nothing can be mounted either.
fn own_mounts() -> io::Result<()> {
    // SAFETY: descriptors stay as they are, and what this thread no longer shares with the others, its directory and its mounts, is as it was.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the one path is a C string, and all that is null is not looked at for these flags.
    match unsafe { libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), flags, ptr::null()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    #[test]
    fn what_is_left_in_it_goes_with_it() {
        let work = tempfile::tempdir().unwrap();
        let place = Place::new(work.path()).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "mkdir -p \"$TMPDIR/a/b\" && cd \"$TMPDIR\" && pwd"]).stdout(Stdio::piped());
        let output = place.start(&mut command).unwrap().output().unwrap();
        let dir = place.dir.path().to_owned();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), dir.to_str().unwrap());
        assert!(dir.join("a/b").is_dir());
        drop(place);
        assert!(!dir.exists());
    }

    #[test]
    fn what_root_mounts_in_it_nobody_else_sees() {
        let work = tempfile::tempdir().unwrap();
        let place = Place::new(work.path()).unwrap();
        if !place.root || thread::spawn(own_mounts).join().unwrap().is_err() {
            eprintln!("skipped: nothing can be mounted");
            return;
        }
        let mut command = Command::new("sh");
        let script = "mount -t tmpfs none \"$TMPDIR\" && echo mounted && cat > \"$TMPDIR/file\"";
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = place.start(&mut command).unwrap();
        let mut said = [0; 8];
        std::io::Read::read_exact(running.child().stdout.as_mut().unwrap(), &mut said).unwrap();
        assert_eq!(&said, b"mounted\n");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(place.dir.path().to_str().unwrap()), "{mounts}");
        drop(running);
    }
}
