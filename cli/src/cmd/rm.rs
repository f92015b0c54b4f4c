//! `skiff rm` and `skiff rename`.

use anyhow::Result;
use clap::ArgMatches;

use super::Verb;
use super::many::{self, VM, VMS, each};
use crate::exit::SUCCESS;
use crate::flags::{self, Completes, Count, Example, Flag, Operand, Takes};
use crate::store::Store;

/// `skiff rm`.
pub const RM: Verb = Verb {
    name: "rm",
    about: "Remove VMs that have stopped",
    long: "Remove VMs that have stopped: their names, specs and logs. Disks and other files that their specs name stay as they \
           are. Prints the names.",
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
}

const FLAGS: &[Flag<Asked>] = &[Flag {
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
}];

fn rm(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    let store = Store::open()?;
    each(&VMS.given(matches), |name| {
        let look = store.get(name)?;
        if asked.force && look.is_live() {
            many::kill(&store, &look.entry)?;
        }
        // A VM that is thrown away at its end is gone already; another was renamed meanwhile, and is not gone.
        let thrown_away = look.state.is_some_and(|state| state.remove);
        if !thrown_away || store.find(name).is_some() {
            store.remove(name, asked.force)?;
        }
        Ok(format!("{name}\n"))
    })
}

fn rename(matches: &ArgMatches) -> Result<u8> {
    Store::open()?.rename(&VM.one(matches), &NEW.one(matches))?;
    Ok(SUCCESS)
}
