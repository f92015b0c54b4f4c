//! What a shell completes a word with. The script of `skiff completions` runs skiff again with a variable in its environment
//! and the words that were typed; what fits comes from the records of verbs, flags and operands, and from the VMs
//! that there are.

use std::path::PathBuf;

use clap::Command;
use clap_complete::env::{Bash, EnvCompleter, Fish, Shells, Zsh};
use clap_complete::{CompleteEnv, CompletionCandidate};

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
    names(&vms_dir()).into_iter().map(CompletionCandidate::new).collect()
}

/// Every VM that runs.
pub fn running_vms() -> Vec<CompletionCandidate> {
    vms()
}

/// Where the VMs are kept (XDG base directory specification).
fn vms_dir() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("skiff/vms"))
}

/// The names of what is in `dir`, sorted. A shell is told nothing of what cannot be read.
fn names(dir: &Option<PathBuf>) -> Vec<String> {
    let entries = dir.as_ref().and_then(|dir| std::fs::read_dir(dir).ok());
    let entries = entries.into_iter().flatten().filter_map(Result::ok);
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_has_no_names() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["calm-fox", "brave-otter"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert_eq!(names(&Some(dir.path().to_owned())), ["brave-otter", "calm-fox"]);
        assert!(names(&Some(dir.path().join("none"))).is_empty() && names(&None).is_empty());
    }

    #[test]
    fn every_shell_has_its_name() {
        let names: Vec<&str> = SHELLS.iter().map(|shell| shell.name()).collect();
        assert_eq!(names, SHELL_NAMES);
    }
}
