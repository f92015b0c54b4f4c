//! Who owns what: the host's ids as the guest sees them, and back.

use std::io;

use fuse_backend_rs::abi::fuse_abi::{SetattrValid, stat64};
use fuse_backend_rs::api::filesystem::Context;
use rustix::io::Errno;

/// Whoever is not the user: `nobody` of most systems.
pub const NOBODY: u32 = 65534;

/// How ids of the host are shown to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// As they are. Only root can give files to others.
    Same,
    /// What belongs to the user who runs this belongs to one user of the guest, and all else to [`NOBODY`]. What the guest makes
    /// belongs to the user.
    One {
        /// The user and the group on the host.
        host: (u32, u32),
        /// The user and the group in the guest.
        guest: (u32, u32),
    },
}

impl Owners {
    /// For the user who runs this: root sees the host's ids, anybody else is the guest's root, and `asked` for
    /// is a user and a group of the guest in their place.
    #[must_use]
    pub fn of_process(asked: Option<(u32, u32)>) -> Self {
        let host = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        match asked {
            None if host.0 == 0 => Self::Same,
            asked => Self::One { host, guest: asked.unwrap_or((0, 0)) },
        }
    }

    /// Whether it can do what needs root: the ids are the host's own.
    pub(super) fn is_root(self) -> bool {
        self == Self::Same
    }

    /// As whom the host is to do what a process of the guest asks for.
    pub(super) fn acting(self, asked: &Context) -> Context {
        let mut context = *asked;
        if matches!(self, Self::One { .. }) {
            // To the library that is whoever it runs as.
            (context.uid, context.gid) = (0, 0);
        }
        context
    }

    /// Of a mode that the guest wants, what it gets. Programs that run as their owner would run as the user on the host, whom others there
    /// are not to become.
    pub(super) fn mode(self, mode: u32) -> u32 {
        if self.is_root() { mode } else { mode & !(libc::S_ISUID | libc::S_ISGID) }
    }

    /// `attributes` as the guest sees them.
    pub(super) fn shown(self, mut attributes: stat64) -> stat64 {
        if let Self::One { host, guest } = self {
            let map = |id: u32, host: u32, guest: u32| if id == host { guest } else { NOBODY };
            attributes.st_uid = map(attributes.st_uid, host.0, guest.0);
            attributes.st_gid = map(attributes.st_gid, host.1, guest.1);
        }
        attributes
    }

    /// What is left of a change of owners that the guest asked for in `wanted`, of a file that it sees as `current`.
    ///
    /// # Errors
    /// If the file cannot be theirs.
    pub(super) fn change(
        self,
        wanted: &stat64,
        current: &stat64,
        valid: SetattrValid,
    ) -> io::Result<SetattrValid> {
        if self.is_root() {
            return Ok(valid);
        }
        let other_user = valid.contains(SetattrValid::UID) && wanted.st_uid != current.st_uid;
        let other_group = valid.contains(SetattrValid::GID) && wanted.st_gid != current.st_gid;
        if other_user || other_group {
            return Err(Errno::PERM.into());
        }
        Ok(valid - (SetattrValid::UID | SetattrValid::GID))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(uid: u32, gid: u32) -> stat64 {
        // SAFETY: a struct of integers.
        let mut attributes: stat64 = unsafe { std::mem::zeroed() };
        (attributes.st_uid, attributes.st_gid) = (uid, gid);
        attributes
    }

    const USER: Owners = Owners::One { host: (1000, 100), guest: (0, 5) };

    #[test]
    fn a_users_files_are_the_guests_and_all_others_nobodys() {
        let shown = |uid, gid| {
            let shown = USER.shown(attributes(uid, gid));
            (shown.st_uid, shown.st_gid)
        };
        assert_eq!(shown(1000, 100), (0, 5));
        assert_eq!(shown(0, 0), (NOBODY, NOBODY));
        assert_eq!(shown(1000, 0), (0, NOBODY));
        let same = Owners::Same.shown(attributes(7, 8));
        assert_eq!((same.st_uid, same.st_gid), (7, 8));
    }

    #[test]
    fn nobody_becomes_the_user_by_a_program_of_the_guest() {
        assert_eq!(USER.mode(libc::S_IFREG | 0o7755), libc::S_IFREG | 0o1755);
        assert_eq!(Owners::Same.mode(0o6755), 0o6755);
    }

    #[test]
    fn who_is_no_root_gives_nothing_away() {
        let both = SetattrValid::UID | SetattrValid::GID | SetattrValid::MODE;
        let current = USER.shown(attributes(1000, 100));
        let left = USER.change(&attributes(0, 5), &current, both).unwrap();
        assert_eq!(left, SetattrValid::MODE, "to the same is nothing to do");
        for (uid, gid) in [(1, 5), (0, 0), (1000, 100), (NOBODY, 5)] {
            let error = USER.change(&attributes(uid, gid), &current, both).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{uid}:{gid}");
        }
        assert!(
            USER.change(&attributes(9, 5), &current, SetattrValid::GID).is_ok(),
            "only what is asked for"
        );
        assert_eq!(Owners::Same.change(&attributes(9, 9), &current, both).unwrap(), both);
    }

    #[test]
    fn the_host_acts_as_the_process_of_the_guest_only_where_the_ids_are_its_own() {
        let asked = Context { uid: 33, gid: 44, pid: 5 };
        assert_eq!((USER.acting(&asked).uid, USER.acting(&asked).gid), (0, 0));
        assert_eq!((Owners::Same.acting(&asked).uid, Owners::Same.acting(&asked).gid), (33, 44));
    }
}
