//! Guests that are kept as they were when they failed: a VM that does not run, with one snapshot of it.
//!
//! It is a VM like others: `skiff ps -a` lists it, `skiff run --from` enters it, `skiff rm --snapshots` removes it. A file in its directory says
//! of which test it is, so that the oldest of that test can go when there is a newer one.

use std::fs;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use vmm::snapshot::Record;

use super::report::Kept;
use crate::cmd::image::file::guest::Guest;
use crate::copy;
use crate::store::entry::Entry;
use crate::store::state::{End, State, replace};
use crate::store::{Store, names};

/// What the snapshot is called.
pub const SNAPSHOT: &str = "failed";
/// What is said of it.
const COMMENT: &str = "what skiff test has kept";
/// In the VM's directory.
const FILE: &str = "test.json";
/// How long the part of the VM's name may be that is the test's, in bytes.
const LONGEST: usize = 40;
/// How many names are tried that others take at the same time.
const TRIES: u64 = 100;

/// Of which test a kept guest is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Of {
    /// The directory of the project.
    pub project: String,
    /// The file that says what is tested, if there is one.
    #[serde(default)]
    pub file: Option<String>,
    /// The test's directory in the results.
    pub test: String,
}

/// Keep `guest` as it is now; `panic` is the line by which its kernel told that it has panicked, if it has. `begun` hears what it is to be called before it is there.
pub fn keep(
    store: &Store,
    guest: &Guest,
    of: &Of,
    panic: Option<&str>,
    mut begun: impl FnMut(&str),
) -> Result<Kept> {
    let id = guest.snapshot(SNAPSHOT, COMMENT)?;
    let manifest = store.snapshots().get(id)?;
    let mut record = Record::new(manifest.vm, vec![None; manifest.disks.len()]);
    record.parent = Some(id);
    let start = format!("failed-{}", of.test.get(..LONGEST.min(of.test.len())).unwrap_or("test"));
    let mut number = next_number(store, &start)?;
    let last = number.saturating_add(TRIES);
    let held = loop {
        let name = format!("{start}-{number}");
        names::check(&name)?;
        match store.create(Some(&name)) {
            Ok(held) => break held,
            // Another test may have had it first.
            Err(error) if number >= last => return Err(error),
            Err(_) => number = number.saturating_add(1),
        }
    };
    begun(&held.name());
    // The record first: from then on the snapshot is needed by more than the guest. The state last: what has none is a leftover.
    record.write(store.snapshots().storage(), &held.record())?;
    let text = serde_json::to_vec(of).context("this cannot be written as JSON")?;
    replace(&held.path(), FILE, &text, false)?;
    let spec = copy::adapt(copy::spec_of(&manifest)?, &held.name(), Vec::new());
    held.write_spec(&spec, true)?;
    // For skiff logs. It can be done without.
    if let Err(error) = fs::copy(guest.console(), held.console_log()) {
        log::warn!("the console's log is not kept: {error}");
    }
    let end = match panic {
        Some(line) => End::Panicked { last_lines: vec![line.to_owned()] },
        None => End::Killed,
    };
    let image = store.image_of(&spec);
    held.write_state(State::new(false).with_agent(true).of(image).ended(end), true)?;
    Ok(Kept { vm: held.name(), snapshot: SNAPSHOT.to_owned(), panicked: panic.is_some() })
}

/// Remove the guest `name`, which was about to be kept when the one who kept it was ended. It may not be there.
pub fn undo(store: &Store, name: &str) -> Result<()> {
    match store.find(name) {
        Some(entry) => remove(store, &entry),
        None => Ok(()),
    }
}

/// Remove the oldest of the guests that are kept of a test, until there are no more than `most`.
pub fn prune(store: &Store, of: &Of, most: usize) -> Result<()> {
    let mut kept: Vec<(u64, Entry)> = Vec::new();
    for entry in store.entries()? {
        if is_of(&entry, of) {
            let number = entry.name().rsplit_once('-').and_then(|(_, number)| number.parse().ok());
            kept.push((number.unwrap_or(0), entry));
        }
    }
    kept.sort_by_key(|(number, _)| *number);
    let surplus = kept.len().saturating_sub(most);
    let mut failed = None;
    for (_, entry) in kept.into_iter().take(surplus) {
        // One that cannot go is no reason for the others to stay.
        if let Err(error) = remove(store, &entry) {
            failed = failed.or(Some(error));
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Remove one with its snapshot. What somebody has started, or taken other snapshots of, is theirs, and stays.
fn remove(store: &Store, entry: &Entry) -> Result<()> {
    let look = store.get(entry.name())?;
    let own = store.family(&look)?.own;
    if look.is_live() || own.iter().any(|own| own.name != SNAPSHOT) {
        return Ok(());
    }
    store.remove(entry.name(), true)?;
    for snapshot in own {
        store.snapshots().mark_removed(snapshot.id)?;
    }
    Ok(())
}

fn is_of(entry: &Entry, of: &Of) -> bool {
    let text = fs::read(entry.file(FILE)).unwrap_or_default();
    serde_json::from_slice::<Of>(&text).is_ok_and(|found| found == *of)
}

/// One more than the greatest of those that begin so.
fn next_number(store: &Store, start: &str) -> Result<u64> {
    let entries = store.entries()?;
    let numbers = entries
        .iter()
        .filter_map(|entry| entry.name().strip_prefix(start)?.strip_prefix('-')?.parse::<u64>().ok());
    Ok(numbers.max().unwrap_or(0).saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(store: &Store, name: &str, of: &Of) {
        let held = store.create(Some(name)).unwrap();
        let spec = "kernel = \"/k\"\ncmdline = \"\"\ncpus = 1\nmemory = \"64M\"\ntransport = \"pci\"\nserial = \"null\"\nconsole = \"null\"\n";
        fs::write(held.path().join("spec.toml"), spec).unwrap();
        fs::write(held.path().join(FILE), serde_json::to_vec(of).unwrap()).unwrap();
        held.write_state(State::new(false).ended(End::Killed), false).unwrap();
    }

    #[test]
    fn of_each_test_the_last_stay() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path());
        let of = |test: &str| Of { project: "/p".to_owned(), file: None, test: test.to_owned() };
        for number in [2, 10, 9] {
            kept(&store, &format!("failed-a-{number}"), &of("a"));
        }
        kept(&store, "failed-b-1", &of("b"));
        kept(&store, "failed-a-1", &Of { project: "/other".to_owned(), ..of("a") });
        let file = Some("/p/other.toml".to_owned());
        kept(&store, "failed-a-3", &Of { file, ..of("a") });
        assert_eq!(next_number(&store, "failed-a").unwrap(), 11);
        assert_eq!(next_number(&store, "failed").unwrap(), 1);
        prune(&store, &of("a"), 2).unwrap();
        let names: Vec<String> =
            store.entries().unwrap().iter().map(|entry| entry.name().to_owned()).collect();
        assert_eq!(names, ["failed-a-1", "failed-a-10", "failed-a-3", "failed-a-9", "failed-b-1"]);
        prune(&store, &of("b"), 0).unwrap();
        assert_eq!(store.entries().unwrap().len(), 4);
    }
}
