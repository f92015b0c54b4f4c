//! Folders of the host: mounted where the host says, by virtio-fs, before the agent is ready.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use agent::message::Mount;

use crate::sys;

/// The kernel's name of the file system.
const KIND: &CStr = c"virtiofs";
/// How often a mount is tried, and the pause between: a driver that was loaded for it finds its device a moment later.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);
/// How far the kernel reads ahead of a program that reads on and on, in KiB: what one request can be. Its own 128 make eight times the requests.
const READ_AHEAD: &str = "1024";

/// Mount them all. One that is mounted already stays.
///
/// # Errors
/// The first that cannot be mounted, and why.
pub fn mount_all(mounts: &[Mount]) -> Result<(), String> {
    let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for mount in mounts.iter().filter(|mount| !is_mounted(&mounted, mount)) {
        mount_one(mount).map_err(|error| format!("{} at {}: {}", mount.tag, mount.path, reason(&error)))?;
    }
    Ok(())
}

fn mount_one(mount: &Mount) -> io::Result<()> {
    let path = Path::new(&mount.path);
    if !path.is_absolute() {
        return Err(io::Error::other("that is no absolute path"));
    }
    fs::create_dir_all(path)?;
    let source = CString::new(mount.tag.as_str())?;
    let flags = if mount.readonly { libc::MS_RDONLY } else { 0 };
    let mut tries = 1;
    loop {
        match sys::mount(&source, path, KIND, flags, c"") {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && tries < TRIES => tries += 1,
            Err(error) => return Err(error),
            Ok(()) => break,
        }
        thread::sleep(PAUSE);
    }
    // Where that fails, files are read more slowly.
    let _ = read_ahead(path);
    Ok(())
}

/// Have the kernel read further ahead in what is mounted at `path`.
fn read_ahead(path: &Path) -> io::Result<()> {
    let device = fs::metadata(path)?.dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), READ_AHEAD)
}

/// What the kernel means.
fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENODEV) => {
            "the guest's kernel has no virtiofs: build the image again, or take one whose kernel has it"
                .to_owned()
        }
        Some(libc::EINVAL) => "the guest's kernel finds no such device".to_owned(),
        _ => error.to_string(),
    }
}

/// Whether `mountinfo` (proc_pid_mountinfo(5)) has `mount`.
fn is_mounted(mountinfo: &str, mount: &Mount) -> bool {
    mountinfo.lines().any(|line| {
        let Some((before, after)) = line.split_once(" - ") else { return false };
        let point = before.split(' ').nth(4).map(plain);
        let mut after = after.split(' ');
        let (kind, source) = (after.next(), after.next().map(plain));
        kind == KIND.to_str().ok()
            && source.as_deref() == Some(&mount.tag)
            && point.is_some_and(|point| Path::new(&point) == Path::new(&mount.path))
    })
}

/// A name without the kernel's escapes: `\040` is a space.
fn plain(name: &str) -> String {
    let mut pieces = name.split('\\');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        match piece.get(..3).map(|digits| u8::from_str_radix(digits, 8)) {
            Some(Ok(byte)) => {
                bytes.push(byte);
                bytes.extend(piece.as_bytes().iter().skip(3));
            }
            _ => bytes.extend([b"\\", piece.as_bytes()].concat()),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_is_found_by_tag_and_place() {
        let info = "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
                    40 22 0:35 / /src rw,relatime shared:9 - virtiofs fs0 rw\n\
                    41 22 0:36 / /a\\040b\\134c rw - virtiofs fs1 rw\n\
                    42 22 0:37 / /tmp/x rw - tmpfs fs2 rw\n";
        let mounted = |tag: &str, path: &str| {
            is_mounted(info, &Mount { tag: tag.into(), path: path.into(), readonly: false })
        };
        assert!(mounted("fs0", "/src") && mounted("fs0", "/src/"));
        assert!(mounted("fs1", "/a b\\c"));
        assert!(!mounted("fs0", "/other") && !mounted("fs1", "/src") && !mounted("fs2", "/tmp/x"));
    }
}
