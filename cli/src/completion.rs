//! What a shell completes a word with. The script of `skiff completions` runs skiff again with a variable in its environment
//! and the words that were typed; what fits comes from the records of verbs, flags and operands, and from the VMs
//! that there are.

use clap::Command;
use clap_complete::env::{Bash, EnvCompleter, Fish, Shells, Zsh};
use clap_complete::{CompleteEnv, CompletionCandidate};

use crate::store::Store;
use crate::store::entry::Entry;

/// With this in the environment, the program does nothing but answer a shell. It holds the shell's name.
pub const VARIABLE: &str = "SKIFF_COMPLETE";

/// The names of [`SHELLS`].
pub const SHELL_NAMES: &[&str] = &["bash", "fish", "zsh"];

/// The shells that can be served.
pub const SHELLS: &[&dyn EnvCompleter] = &[&Bash, &Fish, &Zsh];

/// If a shell asks, answer it and return true.
pub fn answer(command: fn() -> Command) -> clap::error::Result<bool> {
    let here = std::env::current_dir().ok();
    CompleteEnv::with_factory(command)
        .var(VARIABLE)
        .shells(Shells(SHELLS))
        .try_complete(std::env::args_os(), here.as_deref())
}

/// Every VM.
pub fn vms() -> Vec<CompletionCandidate> {
    candidates(|_| true)
}

/// Every VM that runs.
pub fn running_vms() -> Vec<CompletionCandidate> {
    candidates(|entry| entry.holder().is_ok_and(|holder| holder.is_some()))
}

/// Every VM that does not.
pub fn stopped_vms() -> Vec<CompletionCandidate> {
    candidates(|entry| entry.holder().is_ok_and(|holder| holder.is_none()))
}

/// Every snapshot of the VMs whose names stand on the line.
pub fn snapshots() -> Vec<CompletionCandidate> {
    let words: Vec<String> = std::env::args().collect();
    let (mut names, store) = (Vec::new(), Store::open());
    for (entry, name) in store.iter().flat_map(all_snapshots) {
        if words.iter().any(|word| word == entry.name()) {
            names.push(CompletionCandidate::new(name));
        }
    }
    names
}

/// Every snapshot, as `VM@SNAPSHOT`.
pub fn points() -> Vec<CompletionCandidate> {
    let store = Store::open();
    let all = store.iter().flat_map(all_snapshots);
    all.map(|(entry, name)| CompletionCandidate::new(format!("{}@{name}", entry.name()))).collect()
}

/// Every image by its names, the latest without their tag.
pub fn images() -> Vec<CompletionCandidate> {
    let names = Store::open().and_then(|store| Ok(store.images().names()?)).unwrap_or_default();
    let short = |name: &images::name::Name| match name.tag() {
        images::name::DEFAULT_TAG => name.repository().to_owned(),
        _ => name.to_string(),
    };
    names.keys().map(|name| CompletionCandidate::new(short(name))).collect()
}

/// Every image that is here, and those that would be built.
pub fn images_to_be() -> Vec<CompletionCandidate> {
    let built = images::debian::all().iter().flat_map(|recipe| &recipe.names).map(CompletionCandidate::new);
    let mut all: Vec<_> = images().into_iter().chain(built).collect();
    all.sort_by_key(|candidate| candidate.get_value().to_owned());
    all.dedup_by_key(|candidate| candidate.get_value().to_owned());
    all
}

/// Every VM and every snapshot.
pub fn vms_and_points() -> Vec<CompletionCandidate> {
    vms().into_iter().chain(points()).collect()
}

fn all_snapshots(store: &Store) -> Vec<(Entry, String)> {
    let (all, _) = store.snapshots().all().unwrap_or_default();
    let mut found = Vec::new();
    for entry in store.entries().unwrap_or_default() {
        let Ok(Some(record)) = store.record(&entry) else { continue };
        let own = all.iter().filter(|manifest| manifest.vm == record.vm && !manifest.removed);
        found.extend(own.map(|manifest| (entry.clone(), manifest.name.clone())));
    }
    found
}

/// The VMs that are `wanted`. Nothing is written, and a shell is told nothing of what cannot be read.
fn candidates(wanted: impl Fn(&Entry) -> bool) -> Vec<CompletionCandidate> {
    let entries = Store::open().and_then(|store| store.entries()).unwrap_or_default();
    entries.iter().filter(|entry| wanted(entry)).map(|entry| CompletionCandidate::new(entry.name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_has_its_name() {
        let names: Vec<&str> = SHELLS.iter().map(|shell| shell.name()).collect();
        assert_eq!(names, SHELL_NAMES);
    }
}
