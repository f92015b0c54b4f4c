//! What an image needs so that its guest runs the agent: a list that the makers of images put into a root file system.
//!
//! Guests without systemd get only the program: skiff starts it as their init, or their owner starts it.

/// Where the program is in a guest.
pub const PROGRAM_PATH: &str = "/usr/lib/skiff/agent";
/// Where systemd's unit is in a guest.
pub const UNIT_PATH: &str = "/usr/lib/systemd/system/skiff-agent.service";

/// The unit for systemd.
///
/// The agent says that the guest is ready once it runs, so it waits for the network, and for nothing slower. Detached commands
/// outlive a restart of it (`KillMode`), and a command that runs out of memory does not take it along (`OOMPolicy`).
pub const UNIT: &str = "\
[Unit]
Description=Agent of skiff
After=basic.target network.target systemd-user-sessions.service
StartLimitIntervalSec=0

[Service]
ExecStart=/usr/lib/skiff/agent
Restart=always
RestartSec=200ms
KillMode=process
OOMScoreAdjust=-1000
OOMPolicy=continue
TasksMax=infinity
IgnoreSIGPIPE=no

[Install]
WantedBy=multi-user.target
";

/// Something that is put into a root file system. Its parents are made if they are not there; what is there is replaced. All of it
/// is root's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Absolute, without links on the way if the image has `/usr/lib` itself.
    pub path: &'static str,
    /// What it is.
    pub kind: Kind,
}

/// What an [`Item`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory of mode 0755.
    Dir,
    /// The agent's program, of mode 0755.
    Program,
    /// A file with this text, of mode 0644.
    Text(&'static str),
    /// A symbolic link to this.
    Link(&'static str),
}

/// What a guest with systemd needs.
pub const SYSTEMD: &[Item] = &[
    Item { path: "/usr/lib/skiff", kind: Kind::Dir },
    Item { path: PROGRAM_PATH, kind: Kind::Program },
    Item { path: UNIT_PATH, kind: Kind::Text(UNIT) },
    Item { path: "/usr/lib/systemd/system/multi-user.target.wants", kind: Kind::Dir },
    Item {
        path: "/usr/lib/systemd/system/multi-user.target.wants/skiff-agent.service",
        kind: Kind::Link("../skiff-agent.service"),
    },
];

/// What every other guest gets: the program alone.
pub const PROGRAM_ONLY: &[Item] =
    &[Item { path: "/usr/lib/skiff", kind: Kind::Dir }, Item { path: PROGRAM_PATH, kind: Kind::Program }];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_runs_the_program_where_it_is_put() {
        assert!(UNIT.contains(&format!("ExecStart={PROGRAM_PATH}\n")));
        assert!(SYSTEMD.iter().any(|item| item.path == PROGRAM_PATH && item.kind == Kind::Program));
        assert!(SYSTEMD.iter().any(|item| item.path == UNIT_PATH && item.kind == Kind::Text(UNIT)));
    }

    #[test]
    fn parents_stand_before_what_is_in_them() {
        for list in [SYSTEMD, PROGRAM_ONLY] {
            for (at, item) in list.iter().enumerate() {
                let (parent, _) = item.path.rsplit_once('/').unwrap();
                let system = ["/usr/lib", "/usr/lib/systemd/system"].contains(&parent);
                assert!(system || list[..at].iter().any(|other| other.path == parent), "{}", item.path);
            }
        }
    }
}
