//! A VM's vsock device.

use std::path::PathBuf;

use super::ParseError;
use super::options::{Given, Names, Part, Value, text_and_table};

/// The context ID that nobody chose. Every VM can have the same: only its own guest sees it.
const DEFAULT_CID: u32 = 3;

/// A VM's vsock device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockSpec {
    /// The Unix socket on which the host connects to the guest. What the guest connects to is at this path with `_PORT` after it. `None`:
    /// [`VsockSpec::OWN`] in the VM's own directory.
    pub path: Option<PathBuf>,
    /// The guest's context ID, from 3 to 4294967294.
    pub cid: u32,
}

impl VsockSpec {
    /// What the socket is called in the VM's own directory.
    pub const OWN: &str = "vsock.sock";

    /// One in the VM's own directory, with every default.
    #[must_use]
    pub fn own() -> Self {
        Self { path: None, cid: DEFAULT_CID }
    }
}

text_and_table!(VsockSpec);

/// Where the socket is, while it is read.
#[derive(Default)]
pub struct Draft {
    path: Option<PathBuf>,
    own: bool,
    cid: Option<u32>,
}

impl Part for VsockSpec {
    const NAMES: &'static Names = &Names {
        whose: "the vsock's",
        one: "a vsock",
        keys: &["path", "auto", "cid"],
        bare: Some("path"),
        lacks: "names no socket: write auto, or path=FILE, as in path=/run/vm.sock",
        example: "path=/run/vm.sock",
    };
    type Draft = Draft;

    fn set(draft: &mut Draft, given: Given) -> Result<(), ParseError> {
        match given.key {
            "cid" => draft.cid = Some(given.number("a number from 3 to 4294967294")?),
            "auto" => match given.switch() {
                Ok(true) => draft.own = true,
                _ => return Err(given.refused("auto alone, or path=FILE")),
            },
            _ => draft.path = Some(given.text("path=FILE")?.into()),
        }
        Ok(())
    }

    fn finish(draft: Draft, subject: &str) -> Result<Self, ParseError> {
        match (&draft.path, draft.own) {
            (None, false) => return Err(Self::NAMES.lacking(subject)),
            (Some(_), true) => return Err(ParseError::Sockets),
            _ => {}
        }
        Ok(Self { path: draft.path, cid: draft.cid.unwrap_or(DEFAULT_CID) })
    }

    fn pairs(&self) -> Vec<(&'static str, Value)> {
        let place = match &self.path {
            Some(path) => ("path", Value::Path(path.clone())),
            None => ("auto", Value::Bare),
        };
        vec![place, ("cid", Value::Number(self.cid.into()))]
    }
}
