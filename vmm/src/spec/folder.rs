//! A folder of the host that the guest shares.

use std::path::PathBuf;

use devices::virtio::fs::Tag;

use super::ParseError;
use super::options::{Given, Names, Part, Value, text_and_table};

/// The fields of a [`FolderSpec`], by the names that text and files give them.
pub const FOLDER_KEYS: &[&str] = &["path", "empty", "tag", "readonly", "mount", "uid", "gid"];

/// A folder of the host that the guest shares, by a virtio-fs device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderSpec {
    /// Which. `None`: one with nothing in it, until a VM that starts from a snapshot names another.
    pub path: Option<PathBuf>,
    /// What the guest knows it by. `None`: `fs0`, `fs1`, … by its place.
    pub tag: Option<Tag>,
    /// The guest changes nothing in it.
    pub readonly: bool,
    /// Where the agent mounts it in the guest: an absolute path. `None`: the guest mounts it itself.
    pub mount: Option<String>,
    /// The user and the group of the guest to whom files of the host's user belong. `None`: root sees the host's own, and to anybody else's
    /// guest they are root's.
    pub owner: Option<(u32, u32)>,
}

impl FolderSpec {
    /// The folder at `path`, with every default.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into()), tag: None, readonly: false, mount: None, owner: None }
    }

    /// What the guest knows it by, if it is the `at`th.
    #[must_use]
    pub fn tag(&self, at: usize) -> String {
        self.tag.as_ref().map_or_else(|| format!("fs{at}"), |tag| tag.as_str().to_owned())
    }
}

text_and_table!(FolderSpec);

/// A folder while it is read.
#[derive(Default)]
pub struct Draft {
    path: Option<PathBuf>,
    empty: bool,
    tag: Option<Tag>,
    readonly: bool,
    mount: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
}

/// The largest ID of a user or a group: the one above is "none" to system calls.
const MAX_ID: u32 = u32::MAX - 1;

fn id(given: Given) -> Result<u32, ParseError> {
    let wanted = "a number from 0 to 4294967294";
    let refused = given.refused(wanted);
    given.number(wanted).and_then(|id| if id <= MAX_ID { Ok(id) } else { Err(refused) })
}

impl Part for FolderSpec {
    const NAMES: &'static Names = &Names {
        whose: "the folder's",
        one: "a folder",
        keys: FOLDER_KEYS,
        bare: None,
        lacks: "names no folder: write path=DIR, or empty, as in path=.,tag=src",
        example: "path=.,tag=src",
    };
    type Draft = Draft;

    fn set(draft: &mut Draft, given: Given) -> Result<(), ParseError> {
        match given.key {
            "path" => draft.path = Some(given.text("path=DIR")?.into()),
            "empty" => match given.switch() {
                Ok(true) => draft.empty = true,
                _ => return Err(given.refused("empty alone, or path=DIR")),
            },
            "tag" => draft.tag = Some(given.parsed("1 to 36 letters, digits and signs")?),
            "readonly" => draft.readonly = given.switch()?,
            "mount" => draft.mount = Some(given.text("mount=DIR, a path in the guest")?),
            "uid" => draft.uid = Some(id(given)?),
            _ => draft.gid = Some(id(given)?),
        }
        Ok(())
    }

    fn finish(draft: Draft, subject: &str) -> Result<Self, ParseError> {
        match (&draft.path, draft.empty) {
            (None, false) => return Err(Self::NAMES.lacking(subject)),
            (Some(_), true) => return Err(ParseError::Folders),
            _ => {}
        }
        let owner = match (draft.uid, draft.gid) {
            (None, None) => None,
            (uid, gid) => Some((uid.or(gid).unwrap_or(0), gid.or(uid).unwrap_or(0))),
        };
        let Draft { path, tag, readonly, mount, .. } = draft;
        Ok(Self { path, tag, readonly, mount, owner })
    }

    fn pairs(&self) -> Vec<(&'static str, Value)> {
        let place = match &self.path {
            Some(path) => ("path", Value::Path(path.clone())),
            None => ("empty", Value::Bare),
        };
        let mut pairs = vec![place, ("readonly", Value::Switch(self.readonly))];
        pairs.extend(self.tag.as_ref().map(|tag| ("tag", Value::text(tag.as_str()))));
        pairs.extend(self.mount.as_ref().map(|mount| ("mount", Value::text(mount))));
        if let Some((uid, gid)) = self.owner {
            pairs.extend([("uid", Value::Number(uid.into())), ("gid", Value::Number(gid.into()))]);
        }
        pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_as_it_is_written() {
        for text in [
            "path=/src,readonly=off",
            "path=/a,,b,readonly=on,tag=src,mount=/mnt/a b",
            "empty,readonly=off,tag=later",
            "path=/src,readonly=off,uid=1000,gid=100",
        ] {
            assert_eq!(text.parse::<FolderSpec>().unwrap().to_string(), text);
        }
        let same: FolderSpec = "path=/x,uid=7".parse().unwrap();
        assert_eq!(same.owner, Some((7, 7)));
    }

    #[test]
    fn what_is_no_folder_says_what_to_write() {
        for (text, wrong) in [
            ("tag=x", "names no folder: write path=DIR"),
            ("path=/x,empty", "one place"),
            ("empty=off", "empty alone, or path=DIR"),
            ("path=/x,tag=", "the folder's tag"),
            ("path=/x,tag=a b", "the folder's tag"),
            ("path=/x,uid=4294967295", "a number from 0 to 4294967294"),
            ("path=/x,tga=y", "did you mean 'tag'?"),
        ] {
            let error = text.parse::<FolderSpec>().unwrap_err().to_string();
            assert!(error.contains(wrong), "{text}: {error}");
        }
        let long = format!("path=/x,tag={}", "t".repeat(37));
        assert!(long.parse::<FolderSpec>().is_err());
    }
}
