//! A snapshot on the command line: `VM@SNAPSHOT`.

use std::str::FromStr;

use crate::exit::Usage;
use crate::store::names;

/// A VM, or a snapshot of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// The VM's name.
    pub vm: String,
    /// The snapshot's name or id, if one is meant.
    pub snapshot: Option<String>,
}

impl FromStr for Point {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        let (vm, snapshot) = match text.split_once('@') {
            Some((vm, snapshot)) => (vm, Some(snapshot)),
            None => (text, None),
        };
        names::check(vm)?;
        if let Some(snapshot) = snapshot {
            check_given(snapshot)?;
        }
        Ok(Self { vm: vm.to_owned(), snapshot: snapshot.map(str::to_owned) })
    }
}

/// Whether `text` can mean a snapshot: by its name or its id.
pub fn check_given(text: &str) -> Result<(), Usage> {
    if text.parse::<vmm::snapshot::Id>().is_ok() { Ok(()) } else { names::check_snapshot(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_a_vm_and_perhaps_its_snapshot() {
        let point = |vm: &str, snapshot: Option<&str>| Point {
            vm: vm.to_owned(),
            snapshot: snapshot.map(str::to_owned),
        };
        for (text, read) in [
            ("web", point("web", None)),
            ("web@s1", point("web", Some("s1"))),
            ("web@0123456789abcdef", point("web", Some("0123456789abcdef"))),
        ] {
            assert_eq!(text.parse::<Point>().unwrap(), read);
        }
        for text in ["", "@", "web@", "@s1", "web@a@b", "../web@s1", "web@../s1", "a b@s1"] {
            assert!(text.parse::<Point>().is_err(), "{text}");
        }
    }
}
