//! `skiff snapshot create`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use serde::Serialize;
use vmm::control::{VmAction, VmReply};
use vmm::snapshot::Id;

use super::{bytes, family, micros};
use crate::cmd::many::{self, RUNNING_VM};
use crate::cmd::{Verb, print, print_json};
use crate::exit::Usage;
use crate::flags::{self, Completes, Count, Example, Flag, Operand, Takes, utf8};
use crate::progress::Bar;
use crate::store::{Store, names};

/// How long a VM may say nothing while it makes a snapshot.
const SILENCE: Duration = Duration::from_secs(30);
/// The longest comment in bytes.
const LONGEST_COMMENT: usize = 4096;

pub const VERB: Verb = Verb {
    name: "create",
    about: "Take a snapshot of a running VM",
    long: "Take a snapshot of a running VM: its memory, its devices and its disks at one instant. The guest stands still for \
           some milliseconds; the rest is written while it runs on. Prints the name, how long the guest stood still, and what \
           was written.",
    after: String::new,
    flags: || flags::describe(FLAGS),
    operands: &[RUNNING_VM, NAME],
    run: create,
};

const NAME: Operand = Operand {
    name: "NAME",
    count: Count::Maybe,
    completes: Completes::Nothing,
    help: "What the snapshot is called [default: s1, s2, …]",
};

#[derive(Default)]
struct Asked {
    comment: String,
    quiet: bool,
    json: bool,
}

const FLAGS: &[Flag<Asked>] = &[
    Flag {
        name: "comment",
        short: Some('c'),
        takes: Takes::Text("TEXT"),
        help: "What you want to remember of it",
        long: "",
        example: Example { args: &["--comment", "before the upgrade"], toml: "" },
        apply: |asked, value| {
            let text = utf8(value)?;
            anyhow::ensure!(text.len() <= LONGEST_COMMENT, "it is longer than {LONGEST_COMMENT} bytes");
            anyhow::ensure!(
                !text.chars().any(char::is_control),
                "it has control characters: write one line of text"
            );
            asked.comment = text.to_owned();
            Ok(())
        },
    },
    Flag::quiet("Print the name only", |asked, _| {
        asked.quiet = true;
        Ok(())
    }),
    Flag::json("Print a JSON object", |asked, _| {
        asked.json = true;
        Ok(())
    }),
];

/// A snapshot that was taken, as programs see it. The keys stay what they are.
#[derive(Serialize)]
pub struct Taken {
    vm: String,
    /// What users call it.
    pub name: String,
    /// What files call it.
    pub id: Id,
    pause_us: u64,
    total_us: u64,
    /// In bytes.
    memory: u64,
    /// In bytes.
    disks: u64,
}

fn create(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    if asked.quiet && asked.json {
        return Err(Usage("--quiet and --json exclude each other: choose one".to_owned()).into());
    }
    let store = Store::open()?;
    let taken = take(&store, &RUNNING_VM.one(matches), NAME.maybe(matches), &asked.comment)?;
    store.sweep_behind();
    if asked.json {
        return print_json(&taken);
    }
    if asked.quiet {
        return print(format!("{}\n", taken.name));
    }
    print(format!("{}\n", taken.line()))
}

impl Taken {
    fn line(&self) -> String {
        let written = self.memory.saturating_add(self.disks);
        format!(
            "{}: paused {}, {} in {}",
            self.name,
            micros(self.pause_us),
            bytes(written),
            micros(self.total_us)
        )
    }
}

/// Take a snapshot of the running VM `vm`, called `name` or by the next number.
pub fn take(store: &Store, vm: &str, name: Option<String>, comment: &str) -> Result<Taken> {
    if let Some(name) = &name {
        names::check_snapshot(name)?;
    }
    let look = many::running(store, vm)?;
    let family = family(store, vm)?;
    if let Some(name) = name.as_ref().filter(|name| family.own.iter().any(|own| own.name == **name)) {
        bail!(
            "{vm} has a snapshot '{name}' already: choose another name, or remove that one with skiff snapshot rm {vm} {name}"
        );
    }
    let name = name.unwrap_or_else(|| family.next_name());
    let id = Id::draw().context("cannot draw an id")?;
    let action = VmAction::Snapshot { id, name: name.clone(), comment: comment.to_owned() };
    let mut bar = Bar::new(format!("snapshot {name} of {vm}"));
    let begin = Instant::now();
    let reply = look.entry.client(Some(SILENCE))?.act_and_watch(action, |done, total| bar.show(done, total));
    drop(bar);
    log::info!("the snapshot took {:?}", begin.elapsed());
    match reply.with_context(|| vm.to_owned())? {
        VmReply::Snapshot { pause_us, total_us, memory_bytes, disk_bytes } => Ok(Taken {
            vm: vm.to_owned(),
            name,
            id,
            pause_us,
            total_us,
            memory: memory_bytes,
            disks: disk_bytes,
        }),
        VmReply::Ended => bail!("{vm} has ended meanwhile"),
        other => bail!("{vm} answers {other:?}: it was started by another version of skiff"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_is_said_on_one_line() {
        let taken = Taken {
            vm: "web".to_owned(),
            name: "s1".to_owned(),
            id: "0123456789abcdef".parse().unwrap(),
            pause_us: 1234,
            total_us: 18_000,
            memory: 3 << 20,
            disks: 400 << 10,
        };
        assert_eq!(taken.line(), "s1: paused 1.2 ms, 3.4 MiB in 18.0 ms");
    }
}
