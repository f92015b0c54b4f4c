//! A VM's vsock device.

use std::path::PathBuf;

use super::ParseError;
use super::options::{Given, Names, Part, Value, text_and_table};

/// The context ID that nobody chose. Every VM can have the same: only its own guest sees it.
const DEFAULT_CID: u32 = 3;

/// A VM's vsock device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockSpec {
    /// The Unix socket on which the host connects to the guest. What the guest connects to is at this path with `_PORT` after it.
    pub path: PathBuf,
    /// The guest's context ID, from 3 to 4294967294.
    pub cid: u32,
}

text_and_table!(VsockSpec);

impl Part for VsockSpec {
    const NAMES: &'static Names = &Names {
        whose: "the vsock's",
        one: "a vsock",
        keys: &["path", "cid"],
        bare: Some("path"),
        lacks: "names no socket: write path=FILE, as in path=/run/vm.sock",
        example: "path=/run/vm.sock",
    };
    type Draft = (Option<PathBuf>, Option<u32>);

    fn set((path, cid): &mut Self::Draft, given: Given) -> Result<(), ParseError> {
        match given.key {
            "cid" => *cid = Some(given.number("a number from 3 to 4294967294")?),
            _ => *path = Some(given.text("path=FILE")?.into()),
        }
        Ok(())
    }

    fn finish((path, cid): Self::Draft, subject: &str) -> Result<Self, ParseError> {
        let path = path.ok_or_else(|| Self::NAMES.lacking(subject))?;
        Ok(Self { path, cid: cid.unwrap_or(DEFAULT_CID) })
    }

    fn pairs(&self) -> Vec<(&'static str, Value)> {
        vec![("path", Value::Path(self.path.clone())), ("cid", Value::Number(self.cid.into()))]
    }
}
