//! A pseudo-terminal: the command has its one side, the agent the other.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use rustix::termios::{InputModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};

use crate::sys;

/// The agent's side and the command's.
pub fn open(rows: u16, columns: u16, owner: Option<u32>) -> io::Result<(OwnedFd, OwnedFd)> {
    let master = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open("/dev/ptmx")?;
    let mut unlocked = 0i32;
    sys::ioctl(&master, libc::TIOCSPTLCK, &mut unlocked)?;
    // Not by its name: that depends on what is mounted at /dev/pts.
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    let slave = sys::owned(sys::ioctl_value(&master, libc::TIOCGPTPEER, flags.unsigned_abs().into())?)?;
    resize(&master, rows, columns)?;
    let mut modes = tcgetattr(&slave)?;
    modes.input_modes |= InputModes::IUTF8;
    tcsetattr(&slave, OptionalActions::Now, &modes)?;
    if let Some(uid) = owner {
        // As far as it goes: a terminal of another's is still one.
        let _ = rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(uid)), None);
        let _ = rustix::fs::fchmod(&slave, rustix::fs::Mode::from_raw_mode(0o620));
    }
    Ok((master.into(), slave))
}

/// Its size in characters; the command is told with SIGWINCH.
pub fn resize(terminal: &(impl AsFd + AsRawFd), rows: u16, columns: u16) -> io::Result<()> {
    let mut size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    sys::ioctl(terminal, libc::TIOCSWINSZ, &mut size).map(drop)
}

/// The byte that ends the input of who reads lines from it.
pub fn end_of_input(terminal: &impl AsFd) -> u8 {
    tcgetattr(terminal).map_or(4, |modes| modes.special_codes[SpecialCodeIndex::VEOF])
}

/// The guest's console to write to, or nothing.
pub fn console() -> io::Result<File> {
    let open = |path| OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY).open(path);
    open("/dev/console").or_else(|_| open("/dev/null"))
}
