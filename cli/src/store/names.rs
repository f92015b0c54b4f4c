//! Names of VMs and snapshots: which there can be, and those that are made up.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use crate::exit::Usage;

/// In bytes. A host name can be as long.
const LONGEST: usize = 63;

/// Whether a VM can be called `name`.
pub fn check(name: &str) -> Result<(), Usage> {
    check_as("a VM's", name)
}

/// Whether a snapshot can be called `name`. It can be where a VM can, so that `VM@SNAPSHOT` has one meaning; and none looks
/// like an id.
pub fn check_snapshot(name: &str) -> Result<(), Usage> {
    check_as("a snapshot's", name)?;
    match name.parse::<vmm::snapshot::Id>() {
        Ok(_) => {
            Err(Usage(format!("'{name}' cannot be a snapshot's name, for it looks like an id: add a letter")))
        }
        Err(_) => Ok(()),
    }
}

fn check_as(whose: &str, name: &str) -> Result<(), Usage> {
    let mut bytes = name.bytes();
    let starts = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let goes_on = bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if starts && goes_on && name.len() <= LONGEST {
        return Ok(());
    }
    let shown: String = name.chars().flat_map(char::escape_debug).collect();
    Err(Usage(format!(
        "'{shown}' cannot be {whose} name: write up to {LONGEST} letters, digits, '-', '_' and '.', the first a letter or digit"
    )))
}

/// A name of two words; after some tries that were taken, with a number behind it.
pub fn make_up(tries: u32) -> String {
    let random = RandomState::new().build_hasher().finish();
    let pick = |words: &[&'static str], random: u64| {
        let index = usize::try_from(random).unwrap_or(0).checked_rem(words.len()).unwrap_or(0);
        words.get(index).copied().unwrap_or_default()
    };
    let name = format!("{}-{}", pick(ADJECTIVES, random & 0xffff), pick(NOUNS, random >> 16 & 0xffff));
    if tries < 4 { name } else { format!("{name}-{}", (random >> 32) % 10_u64.saturating_pow(tries.min(9))) }
}

#[rustfmt::skip]
const ADJECTIVES: &[&str] = &[
    "agile", "amber", "ample", "azure", "balmy", "bold", "brave", "breezy", "bright", "brisk", "calm", "candid", "cheery", "clear",
    "clever", "cosy", "crisp", "daring", "deft", "eager", "early", "fair", "fleet", "fond", "frank", "free", "fresh", "gentle",
    "glad", "golden", "grand", "hale", "happy", "hardy", "honest", "jolly", "keen", "kind", "light", "lively", "lucky", "mellow",
    "merry", "mild", "neat", "nimble", "noble", "plucky", "polite", "proud", "quick", "quiet", "ready", "royal", "sandy", "serene",
    "silver", "smooth", "snug", "spry", "steady", "sunny", "swift", "tidy", "trim", "trusty", "vivid", "warm", "witty", "zesty",
];

#[rustfmt::skip]
const NOUNS: &[&str] = &[
    "anchor", "bay", "beacon", "bow", "breeze", "buoy", "canoe", "cape", "clipper", "coast", "compass", "coral", "cove", "current",
    "cutter", "delta", "dinghy", "dock", "dolphin", "dory", "ferry", "fjord", "galley", "gull", "harbor", "heron", "hull", "island",
    "jetty", "kayak", "keel", "ketch", "lagoon", "lantern", "ledge", "mast", "oar", "osprey", "otter", "paddle", "pelican", "petrel",
    "pier", "pilot", "puffin", "quay", "raft", "reef", "rigger", "river", "rudder", "sail", "sailor", "schooner", "seal", "shoal",
    "shore", "sloop", "spray", "strand", "tern", "tide", "tiller", "trawler", "wake", "wave", "wharf", "yawl",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_fit_for_a_directory_a_host_and_a_shell() {
        for name in ["a", "0", "web-1", "Web_2.test", &"x".repeat(63)] {
            assert!(check(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "-a", ".gone-1", "_a", "a/b", "a b", "a@b", "ä", "a\n", &"x".repeat(64)]
        {
            assert!(check(name).is_err(), "{name}");
        }
        assert!(check("\u{1b}[2J").unwrap_err().0.starts_with("'\\u{1b}[2J' cannot"));
    }

    #[test]
    fn no_snapshot_is_called_like_an_id() {
        assert!(check_snapshot("s1").is_ok() && check_snapshot("0123456789abcde").is_ok());
        for name in ["0123456789abcdef", "a@b", ""] {
            assert!(check_snapshot(name).is_err(), "{name}");
        }
    }

    #[test]
    fn made_up_names_are_names_and_get_longer_when_many_are_taken() {
        for tries in 0..20 {
            let name = make_up(tries);
            assert!(check(&name).is_ok(), "{name}");
            assert_eq!(name.split('-').count(), if tries < 4 { 2 } else { 3 }, "{name}");
        }
        for word in ADJECTIVES.iter().chain(NOUNS) {
            assert!(word.bytes().all(|byte| byte.is_ascii_lowercase()), "{word}");
        }
    }
}
