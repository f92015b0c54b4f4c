//! `skiff rm` and `skiff rename`.

use anyhow::{Result, bail};
use clap::ArgMatches;
use vmm::snapshot::Id;

use super::Verb;
use super::many::{self, VM, VMS, each};
use crate::exit::SUCCESS;
use crate::flags::{self, Completes, Count, Example, Flag, Operand, Takes};
use crate::store::Store;
use crate::store::entry::Look;

/// `skiff rm`.
pub const RM: Verb = Verb {
    name: "rm",
    about: "Remove VMs that have stopped",
    long: "Remove VMs that have stopped: their names, specs and logs, and the layers that hold what they have written since \
           their last snapshots. Disks and other files that their specs name stay as they are. A VM that has snapshots stays, too, \
           unless these are to go with it. Prints the names.",
    after: String::new,
    flags: || flags::describe(FLAGS),
    operands: &[VMS],
    run: rm,
};

/// `skiff rename`.
pub const RENAME: Verb = Verb {
    name: "rename",
    about: "Give a VM another name",
    long: "Give a VM another name. It may run meanwhile.",
    after: String::new,
    flags: Vec::new,
    operands: &[VM, NEW],
    run: rename,
};

const NEW: Operand =
    Operand { name: "NEW", count: Count::One, completes: Completes::Nothing, help: "The name it is to have" };

#[derive(Default)]
struct Asked {
    force: bool,
    snapshots: bool,
}

const FLAGS: &[Flag<Asked>] = &[
    Flag {
        name: "force",
        short: Some('f'),
        takes: Takes::Nothing,
        help: "Kill those that run, and remove those that are broken",
        long: "",
        example: Example { args: &["-f"], toml: "" },
        apply: |asked, _| {
            asked.force = true;
            Ok(())
        },
    },
    Flag {
        name: "snapshots",
        short: None,
        takes: Takes::Nothing,
        help: "Remove their snapshots, too",
        long: "Clones are not harmed: what they need is kept for as long as they need it.",
        example: Example { args: &["--snapshots"], toml: "" },
        apply: |asked, _| {
            asked.snapshots = true;
            Ok(())
        },
    },
];

fn rm(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    let store = Store::open()?;
    let code = each(&VMS.given(matches), |name| {
        let look = store.get(name)?;
        let snapshots = snapshots_of(&store, &look, &asked)?;
        if asked.force && look.is_live() {
            many::kill(&store, &look.entry)?;
        }
        // A VM that is thrown away at its end is gone already; another was renamed meanwhile, and is not gone.
        let thrown_away = look.state.is_some_and(|state| state.remove);
        if !thrown_away || store.find(name).is_some() {
            store.remove(name, asked.force)?;
        }
        for snapshot in snapshots {
            store.snapshots().mark_removed(snapshot)?;
        }
        Ok(format!("{name}\n"))
    })?;
    store.sweep_behind();
    Ok(code)
}

/// The snapshots that are to go with a VM.
fn snapshots_of(store: &Store, look: &Look, asked: &Asked) -> Result<Vec<Id>> {
    let family = match store.family(look) {
        // Nobody knows what is its own.
        Err(error) if asked.force => {
            log::warn!("{error:#}");
            return Ok(Vec::new());
        }
        family => family?,
    };
    let name = look.entry.name();
    let force = if asked.force { "-f " } else { "" };
    match family.own.len() {
        0 => Ok(Vec::new()),
        _ if asked.snapshots => Ok(family.own.iter().map(|own| own.id).collect()),
        1 => bail!("{name} has a snapshot: skiff rm {force}--snapshots {name} removes it, too"),
        many => bail!("{name} has {many} snapshots: skiff rm {force}--snapshots {name} removes them, too"),
    }
}

fn rename(matches: &ArgMatches) -> Result<u8> {
    Store::open()?.rename(&VM.one(matches), &NEW.one(matches))?;
    Ok(SUCCESS)
}
