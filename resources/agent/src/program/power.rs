//! Switching the guest off: as init itself, otherwise by asking the guest's init.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::{note, sys};

/// What `systemctl poweroff` says to systemd (systemd(1), SIGRTMIN+4).
const SYSTEMD_POWER_OFF: i32 = 34 + 4;
/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

static WANTED: AtomicBool = AtomicBool::new(false);

/// Whether this process is the guest's init.
pub fn is_init() -> bool {
    std::process::id() == 1
}

/// Switch the guest off. Returns while the guest's init does it; never, as init.
pub fn off() {
    if is_init() {
        if WANTED.swap(true, Ordering::SeqCst) {
            return;
        }
        as_init();
    }
    if Path::new("/run/systemd/system").exists() && sys::kill(1, SYSTEMD_POWER_OFF).is_ok() {
        return;
    }
    for program in ["/sbin/poweroff", "/usr/sbin/poweroff", "/bin/poweroff"] {
        let started = Command::new(program).stdin(Stdio::null()).spawn();
        if started.is_ok() {
            return;
        }
    }
    note(format_args!("the guest's init has no way to switch off: doing it without"));
    sys::sync();
    let _ = sys::reboot(libc::RB_POWER_OFF);
}

/// End every process, write everything to the disks, and the machine is off.
fn as_init() -> ! {
    let _ = sys::kill(-1, libc::SIGTERM);
    let since = Instant::now();
    while since.elapsed() < GRACE && others() {
        thread::sleep(Duration::from_millis(10));
    }
    let _ = sys::kill(-1, libc::SIGKILL);
    sys::sync();
    read_only();
    loop {
        let _ = sys::reboot(libc::RB_POWER_OFF);
        // A machine without the means.
        let _ = sys::reboot(libc::RB_HALT_SYSTEM);
        thread::sleep(Duration::from_secs(1));
    }
}

/// Whether a process is left that is no thread of the kernel's (those have no command line) and has not ended.
fn others() -> bool {
    let Ok(entries) = fs::read_dir("/proc") else { return false };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != 1)
        .any(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty()))
}

/// No disk is written any more. What cannot be unmounted, such as the root, is made read-only.
fn read_only() {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for line in mounts.lines().rev() {
        let mut fields = line.split(' ');
        let (Some(source), Some(target)) = (fields.next(), fields.next()) else { continue };
        if !source.starts_with("/dev/") {
            continue;
        }
        let flags = libc::MS_REMOUNT | libc::MS_RDONLY;
        let _ = sys::mount(c"none", Path::new(target), c"none", flags, c"");
    }
    sys::sync();
}
