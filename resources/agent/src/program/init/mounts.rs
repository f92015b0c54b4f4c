//! What init mounts: the kernel's own file systems, and the disk in place of the initial RAM disk.

use std::ffi::{CStr, CString};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::{note, sys};

/// Where the disk is before it is the root.
const NEW_ROOT: &str = "/new-root";
/// How long a disk may take to appear, and between two looks.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(2);

const SAFE: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV;
const DATA: libc::c_ulong = SAFE | libc::MS_NOEXEC;

/// A file system of the kernel's.
struct Mount {
    path: &'static str,
    kind: &'static CStr,
    flags: libc::c_ulong,
    data: &'static CStr,
}

/// Without these nothing is found. They move along to the new root.
const EARLY: &[Mount] = &[
    Mount { path: "/dev", kind: c"devtmpfs", flags: libc::MS_NOSUID, data: c"mode=0755" },
    Mount { path: "/proc", kind: c"proc", flags: DATA, data: c"" },
    Mount { path: "/sys", kind: c"sysfs", flags: DATA, data: c"" },
];

const REST: &[Mount] = &[
    Mount {
        path: "/dev/pts",
        kind: c"devpts",
        flags: libc::MS_NOSUID | libc::MS_NOEXEC,
        data: c"mode=620,ptmxmode=666,gid=5",
    },
    Mount { path: "/dev/shm", kind: c"tmpfs", flags: SAFE, data: c"mode=1777" },
    Mount { path: "/run", kind: c"tmpfs", flags: SAFE, data: c"mode=0755" },
    Mount { path: "/sys/fs/cgroup", kind: c"cgroup2", flags: DATA, data: c"" },
];

/// Links that udev makes elsewhere.
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

impl Mount {
    fn make(&self) {
        let path = Path::new(self.path);
        let made = fs::create_dir_all(path)
            .and_then(|()| sys::mount(self.kind, path, self.kind, self.flags, self.data));
        match made {
            // The kernel may have mounted /dev itself.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => note(format_args!("{}: {error}", self.path)),
            Ok(()) => {}
        }
    }
}

/// What is needed to find anything.
pub fn early() {
    EARLY.iter().for_each(Mount::make);
}

/// What programs expect, in the root as it stays.
pub fn rest() {
    REST.iter().for_each(Mount::make);
    for (target, link) in LINKS {
        let _ = symlink(target, link);
    }
    let _ = fs::create_dir_all("/run/lock");
    temporary();
}

/// `/tmp` in memory, unless the image has something there.
fn temporary() {
    let _ = fs::create_dir_all("/tmp");
    let empty = fs::read_dir("/tmp").is_ok_and(|mut entries| entries.next().is_none());
    if empty {
        Mount { path: "/tmp", kind: c"tmpfs", flags: SAFE, data: c"mode=1777" }.make();
    } else {
        let _ = fs::set_permissions("/tmp", fs::Permissions::from_mode(0o1777));
    }
}

/// Make the file system on `device` the root of this process and all that it starts.
pub fn switch_root(device: &str, kind: Option<&str>, read_only: bool) -> io::Result<()> {
    wait_for(Path::new(device))?;
    fs::create_dir_all(NEW_ROOT)?;
    let source = CString::new(device)?;
    let kind = CString::new(kind.unwrap_or("ext4"))?;
    let flags = if read_only { libc::MS_RDONLY } else { 0 };
    sys::mount(&source, Path::new(NEW_ROOT), &kind, flags, c"")?;
    for early in EARLY {
        let to = format!("{NEW_ROOT}{}", early.path);
        match fs::create_dir(&to) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        sys::mount(&CString::new(early.path)?, Path::new(&to), c"", libc::MS_MOVE, c"")?;
    }
    std::env::set_current_dir(NEW_ROOT)?;
    sys::mount(c".", Path::new("/"), c"", libc::MS_MOVE, c"")?;
    std::os::unix::fs::chroot(".")?;
    std::env::set_current_dir("/")
}

/// Drivers find their devices when they like.
fn wait_for(device: &Path) -> io::Result<()> {
    let since = Instant::now();
    while !device.exists() {
        if since.elapsed() > PATIENCE {
            return Err(io::Error::other("there is no such device"));
        }
        thread::sleep(LOOK);
    }
    Ok(())
}
