//! The command that a VM is there for, in its directory: what runs in it again whenever `skiff start` starts it.
//!
//! It is written by whoever starts the VM for a command in the background, once that command runs, and goes with the directory.

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result};

use super::entry::Entry;
use super::state::replace;
use crate::exec::Wish;

const FILE: &str = "command.json";

/// The VM is there for `wish` from now on.
pub fn remember(entry: &Entry, wish: &Wish) -> Result<()> {
    let text = serde_json::to_vec(wish).context("the command cannot be written as JSON")?;
    replace(entry.dir(), FILE, &text, false)
}

/// What the VM is there for, if it is for a command.
pub fn recall(entry: &Entry) -> Result<Option<Wish>> {
    let path = entry.file(FILE);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let wish = serde_json::from_slice(&text).with_context(|| {
        format!("{} is damaged: remove it, and the VM starts without its command", path.display())
    });
    wish.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_remembered_is_recalled_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let entry = Entry::new("web", dir.path().to_owned());
        assert_eq!(recall(&entry).unwrap(), None);
        let wish = Wish {
            argv: vec!["serve".to_owned(), "-x y".to_owned()],
            env: vec!["A=1".to_owned()],
            detach: true,
            then_power_off: true,
            ..Wish::default()
        };
        remember(&entry, &wish).unwrap();
        assert_eq!(recall(&entry).unwrap(), Some(wish));
        fs::write(entry.file(FILE), "{").unwrap();
        let error = format!("{:#}", recall(&entry).unwrap_err());
        assert!(error.contains("command.json is damaged") && error.contains("remove it"), "{error}");
    }
}
