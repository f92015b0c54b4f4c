//! What of a guest's words is taken: names, flags and attributes.

use std::ffi::CStr;
use std::io;

use rustix::io::Errno;

/// The longest name of one file in bytes (`NAME_MAX`).
const NAME_MAX: usize = 255;
/// The longest path in bytes (`PATH_MAX`): what a symbolic link can hold.
const PATH_MAX: usize = 4095;
/// The most data of one request, in bytes: what `FUSE_INIT` agrees on.
pub(super) const MOST_DATA: u32 = 1 << 20;
/// The most of a directory that is listed at once, in bytes: each entry of it costs a descriptor for a moment.
const MOST_LIST: u32 = 1 << 15;
/// The longest entry of a directory as the host has it, in bytes.
const LONGEST_ENTRY: u32 = 280;
/// The largest extended attribute or list of them in bytes (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
pub(super) const MOST_ATTRIBUTE: u32 = 1 << 16;

/// How much of a directory to take from the host, in bytes, for `size` bytes of the guest's: no more than fits, whatever the names are. What did
/// not fit would be looked for again by its place, and places of a directory in memory are others once something was removed.
pub(super) fn list_size(size: u32, plus: bool) -> u32 {
    // The shortest entry has 24 bytes on the host and 32 in an answer, before which its attributes have 128.
    let entry = if plus { 160 } else { 32 };
    (size.min(MOST_LIST) / entry * 24).max(LONGEST_ENTRY)
}

/// The name of one file in a directory: neither it, nor its parent, nor a path.
pub(super) fn name(name: &CStr) -> io::Result<&CStr> {
    match name.to_bytes() {
        [] => Err(Errno::NOENT.into()),
        b"." | b".." => Err(Errno::INVAL.into()),
        bytes if bytes.contains(&b'/') => Err(Errno::INVAL.into()),
        bytes if bytes.len() > NAME_MAX => Err(Errno::NAMETOOLONG.into()),
        _ => Ok(name),
    }
}

/// Where a symbolic link leads. The host never follows it: the guest does, in the guest.
pub(super) fn target(target: &CStr) -> io::Result<&CStr> {
    match target.to_bytes().len() {
        0 => Err(Errno::NOENT.into()),
        len if len > PATH_MAX => Err(Errno::NAMETOOLONG.into()),
        _ => Ok(target),
    }
}

/// What of the flags of an open file means something here. The host does not bypass its page cache for a guest that asked to
/// bypass its own: that would put rules of the host's disk on the guest's memory.
const OPEN_FLAGS: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_SYNC
    | libc::O_DSYNC
    | libc::O_NOFOLLOW
    | libc::O_LARGEFILE;

/// The flags to use a file with, which is open already.
pub(super) fn use_flags(flags: u32) -> u32 {
    flags & OPEN_FLAGS as u32 | libc::O_CLOEXEC as u32
}

/// The flags to open a file with.
///
/// # Errors
/// If it is for neither reading nor writing, or would be changed where nothing may be.
pub(super) fn open_flags(flags: u32, read_only: bool) -> io::Result<u32> {
    let mode = flags as i32 & libc::O_ACCMODE;
    if mode == libc::O_ACCMODE {
        return Err(Errno::INVAL.into());
    }
    if read_only && (mode != libc::O_RDONLY || flags as i32 & libc::O_TRUNC != 0) {
        return Err(Errno::ROFS.into());
    }
    Ok(use_flags(flags) | flags & libc::O_TRUNC as u32)
}

/// The mode of a new file, without what would make it a device.
///
/// # Errors
/// If it is to be a device.
pub(super) fn node_mode(mode: u32) -> io::Result<u32> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK => Ok(mode & (libc::S_IFMT | 0o7777)),
        _ => Err(Errno::PERM.into()),
    }
}

/// How `fallocate` may be asked: what moves or shares data takes the host as long as the file is large.
pub(super) fn fallocate_mode(mode: u32) -> io::Result<()> {
    let [keep, punch, zero] =
        [libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE]
            .map(|flag| flag as u32);
    match mode & !keep {
        0 => Ok(()),
        mode if mode == punch || mode == zero => Ok(()),
        _ => Err(Errno::OPNOTSUPP.into()),
    }
}

/// What of `renameat2` the guest may ask for: a whiteout would be a device.
pub(super) fn rename_flags(flags: u32) -> io::Result<u32> {
    if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) != 0 {
        return Err(Errno::INVAL.into());
    }
    Ok(flags)
}

/// Whether the guest may see and set this extended attribute. Those that a system acts on are for root alone.
pub(super) fn is_open_attribute(name: &[u8], root: bool) -> bool {
    name.starts_with(b"user.") || root && name == b"security.capability"
}

/// An extended attribute that the guest may have.
pub(super) fn attribute(name: &CStr, root: bool) -> io::Result<&CStr> {
    if is_open_attribute(name.to_bytes(), root) { Ok(name) } else { Err(Errno::OPNOTSUPP.into()) }
}

/// Of a list of extended attributes, each with its NUL, those that the guest may have.
pub(super) fn open_attributes(list: &[u8], root: bool) -> Vec<u8> {
    let names = list.split_inclusive(|byte| *byte == 0);
    names
        .filter(|name| is_open_attribute(name.strip_suffix(b"\0").unwrap_or(name), root))
        .flatten()
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn errno<T>(result: io::Result<T>) -> Option<i32> {
        result.err().and_then(|error| error.raw_os_error())
    }

    #[test]
    fn what_is_taken_of_a_directory_fits_into_the_answer() {
        let padded = |len: u32| len.next_multiple_of(8);
        for (size, plus) in [(4096, true), (4096, false), (1 << 20, true)] {
            for name in 1..=255 {
                let entries = list_size(size, plus) / padded(19 + name + 1);
                let answer = entries * (padded(24 + name) + if plus { 128 } else { 0 });
                assert!(entries > 0 && answer <= size, "{size} {plus} {name}");
            }
        }
    }

    #[test]
    fn a_name_is_one_component() {
        for good in [c"a", c"...", c"..a", c" ", c"a\n", c"\xff"] {
            assert!(name(good).is_ok(), "{good:?}");
        }
        for (bad, why) in [
            (c"", libc::ENOENT),
            (c".", libc::EINVAL),
            (c"..", libc::EINVAL),
            (c"a/b", libc::EINVAL),
            (c"/", libc::EINVAL),
            (c"../x", libc::EINVAL),
        ] {
            assert_eq!(errno(name(bad)), Some(why), "{bad:?}");
        }
        let long = std::ffi::CString::new([b'a'; 256]).unwrap();
        assert_eq!(errno(name(&long)), Some(libc::ENAMETOOLONG));
    }

    #[test]
    fn what_would_change_a_folder_that_is_read_only_is_refused_before_it_is_opened() {
        let rdwr = libc::O_RDWR as u32;
        let trunc = libc::O_TRUNC as u32;
        for flags in [libc::O_WRONLY as u32, rdwr, trunc, rdwr | trunc] {
            assert_eq!(errno(open_flags(flags, true)), Some(libc::EROFS), "{flags:#o}");
            assert!(open_flags(flags, false).is_ok());
        }
        assert!(open_flags(0, true).is_ok());
        assert_eq!(errno(open_flags(libc::O_ACCMODE as u32, false)), Some(libc::EINVAL));
    }

    #[test]
    fn no_device_is_made() {
        for mode in [libc::S_IFBLK, libc::S_IFCHR, libc::S_IFDIR, libc::S_IFLNK] {
            assert_eq!(errno(node_mode(mode | 0o666)), Some(libc::EPERM), "{mode:#o}");
        }
        assert_eq!(node_mode(libc::S_IFIFO | 0o644).unwrap(), libc::S_IFIFO | 0o644);
        assert_eq!(errno(rename_flags(libc::RENAME_WHITEOUT)), Some(libc::EINVAL));
    }

    #[test]
    fn room_is_made_and_given_back_and_nothing_is_moved() {
        for mode in [0, libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE] {
            assert!(fallocate_mode(mode as u32).is_ok());
        }
        for mode in
            [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE, libc::FALLOC_FL_UNSHARE_RANGE]
        {
            assert_eq!(errno(fallocate_mode(mode as u32)), Some(libc::EOPNOTSUPP));
        }
    }

    #[test]
    fn a_user_sees_attributes_of_users() {
        let list = b"user.a\0security.capability\0trusted.x\0user.b\0";
        assert_eq!(open_attributes(list, false), b"user.a\0user.b\0");
        assert_eq!(open_attributes(list, true), b"user.a\0security.capability\0user.b\0");
        assert_eq!(errno(attribute(c"security.selinux", true)), Some(libc::EOPNOTSUPP));
    }

    proptest! {
        /// Whatever the guest sets: what the host opens with never makes, follows or leaks anything.
        #[test]
        fn flags_that_are_opened_with_are_harmless(flags: u32, read_only: bool) {
            if let Ok(flags) = open_flags(flags, read_only) {
                let never = libc::O_CREAT | libc::O_EXCL | libc::O_PATH | libc::O_TMPFILE & !libc::O_DIRECTORY | libc::O_ASYNC | libc::O_DIRECT;
                prop_assert_eq!(flags as i32 & never, 0);
                prop_assert_ne!(flags as i32 & libc::O_CLOEXEC, 0);
                prop_assert!(!read_only || flags as i32 & (libc::O_ACCMODE | libc::O_TRUNC) == 0);
            }
        }
    }
}
