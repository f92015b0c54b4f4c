//! What of a shared folder is saved: which file each number of the guest's stands for, by its path beneath the folder.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::table::{MOST_NODES, ROOT};
use crate::state::{Hex, RestoreError};

/// A shared folder. What is in it is the host's, and not part of any snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FsState {
    /// What the guest has mounted.
    pub session: Option<FsSession>,
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FsSession {
    /// The features of FUSE that were agreed on.
    pub features: u64,
    /// The number of the next node.
    pub next_node: u64,
    /// The number of the next open file.
    pub next_handle: u64,
    /// What the guest has looked up.
    pub nodes: Vec<FsNode>,
    /// What it has open.
    pub handles: Vec<FsHandle>,
}

/// A file, directory or other thing that the guest has looked up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FsNode {
    /// The guest's number of it.
    pub id: u64,
    /// Where it was beneath the folder. None: it had no name there any more.
    pub path: Option<Hex>,
    /// The host's inode number, by which it is known again.
    pub ino: u64,
    /// The file type bits of its mode.
    pub kind: u32,
    /// How often the guest was given it and has not given it back.
    pub lookups: u64,
}

/// An open file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FsHandle {
    /// The guest's number of it.
    pub id: u64,
    /// The node that it is of.
    pub node: u64,
    /// How it was opened.
    pub flags: u32,
    /// It is a directory.
    pub directory: bool,
}

impl FsSession {
    /// Whether a device could have written this. `most` bounds each table.
    ///
    /// # Errors
    /// The field that it could not.
    pub(super) fn check(&self, device: &str, most: usize) -> Result<(), RestoreError> {
        let wrong =
            |field: &str, reason: String| Err(RestoreError::new(device, format!("session.{field}"), reason));
        // The folder itself is one of those that are counted, and not among those that are saved.
        if self.nodes.len() >= MOST_NODES || self.handles.len() > most {
            let count = self.handles.len();
            return wrong(
                "handles",
                format!(
                    "the guest has {count} files open, and this host lets a program open too few: raise its limit of open files (ulimit -n)"
                ),
            );
        }
        let mut seen = BTreeSet::new();
        for node in &self.nodes {
            if node.id <= ROOT || node.id >= self.next_node || !seen.insert(node.id) || node.lookups == 0 {
                return wrong("nodes", format!("there can be no node {} here", node.id));
            }
            if node.path.as_ref().is_some_and(|path| !is_beneath(&path.0)) {
                return wrong("nodes", format!("the path of node {} leads elsewhere", node.id));
            }
        }
        let mut seen = BTreeSet::new();
        for handle in &self.handles {
            if handle.id == 0 || handle.id >= self.next_handle || !seen.insert(handle.id) {
                return wrong("handles", format!("there can be no open file {} here", handle.id));
            }
        }
        Ok(())
    }
}

/// Whether `path` is made of names alone.
fn is_beneath(path: &[u8]) -> bool {
    !path.contains(&0) && path.split(|byte| *byte == b'/').all(|name| !matches!(name, b"" | b"." | b".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(paths: &[&str]) -> FsSession {
        let nodes = (2..).zip(paths).map(|(id, path)| {
            let path = Some(Hex(path.as_bytes().to_vec()));
            FsNode { id, path, ino: 9, kind: libc::S_IFREG, lookups: 1 }
        });
        let handles = vec![FsHandle { id: 1, node: 2, flags: 0, directory: false }];
        FsSession { features: 0, next_node: 9, next_handle: 2, nodes: nodes.collect(), handles }
    }

    #[test]
    fn what_leads_elsewhere_is_no_state() {
        assert!(session(&["a", "a/b c/d"]).check("fs0", 9).is_ok());
        for path in ["", "/a", "a/", "a//b", "..", "a/../b", ".", "a\0b"] {
            let error = session(&[path]).check("fs0", 9).unwrap_err().to_string();
            assert!(
                error.contains("session.nodes") && error.contains("leads elsewhere"),
                "{path:?}: {error}"
            );
        }
    }

    #[test]
    fn numbers_are_what_a_device_gives_out() {
        let wrong = |change: fn(&mut FsSession)| {
            let mut session = session(&["a", "b"]);
            change(&mut session);
            assert!(session.check("fs0", 9).is_err());
        };
        wrong(|session| session.nodes[0].id = 0);
        wrong(|session| session.nodes[0].id = ROOT);
        wrong(|session| session.nodes[0].id = 9);
        wrong(|session| session.nodes[0].id = 3);
        wrong(|session| session.nodes[0].lookups = 0);
        wrong(|session| session.handles[0].id = 0);
        wrong(|session| session.handles[0].id = 2);
        wrong(|session| session.handles.push(session.handles[0].clone()));
        assert!(session(&["a", "b"]).check("fs0", 0).unwrap_err().to_string().contains("ulimit -n"));
    }
}
