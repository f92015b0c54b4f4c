//! `skiff snapshot rm`.

use anyhow::Result;
use clap::ArgMatches;
use vmm::snapshot::Id;

use super::family;
use crate::cmd::many::VM;
use crate::cmd::{Verb, print};
use crate::exit::SUCCESS;
use crate::flags::{self, Completes, Count, Example, Flag, Operand, Takes};
use crate::progress::Bar;
use crate::store::Store;
use crate::store::layers::Family;

pub const VERB: Verb = Verb {
    name: "rm",
    about: "Remove snapshots of a VM",
    long: "Remove snapshots of a VM. Those that come from them stay as they are, and so do clones and the VM itself: what they \
           need of a removed snapshot is merged into them behind your back, or kept until nobody needs it. Prints the names.",
    after: String::new,
    flags: || flags::describe(FLAGS),
    operands: &[VM, SNAPSHOTS],
    run,
};

const SNAPSHOTS: Operand = Operand {
    name: "SNAPSHOT",
    count: Count::Some,
    completes: Completes::Snapshots,
    help: "The snapshots, by name or id",
};

#[derive(Default)]
struct Asked {
    children: bool,
    wait: bool,
}

const FLAGS: &[Flag<Asked>] = &[
    Flag {
        name: "with-children",
        short: None,
        takes: Takes::Nothing,
        help: "Those of the VM that come from them, too",
        long: "Snapshots of clones stay.",
        example: Example { args: &["--with-children"], toml: "" },
        apply: |asked, _| {
            asked.children = true;
            Ok(())
        },
    },
    Flag {
        name: "wait",
        short: None,
        takes: Takes::Nothing,
        help: "End when what they took is free",
        long: "",
        example: Example { args: &["--wait"], toml: "" },
        apply: |asked, _| {
            asked.wait = true;
            Ok(())
        },
    },
];

fn run(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    let store = Store::open()?;
    let family = family(&store, &VM.one(matches))?;
    // All are found before the first is removed.
    let mut doomed: Vec<(Id, &str)> = Vec::new();
    for name in SNAPSHOTS.given(matches) {
        let manifest = family.find_own(&name)?;
        let children = if asked.children { descendants(&family, manifest.id) } else { Vec::new() };
        for (id, name) in [(manifest.id, manifest.name.as_str())].into_iter().chain(children) {
            if !doomed.iter().any(|(other, _)| *other == id) {
                doomed.push((id, name));
            }
        }
    }
    // Children first: if it ends on the way, no child has lost its parent.
    for (id, name) in doomed.iter().rev() {
        store.snapshots().mark_removed(*id)?;
        print(format!("{name}\n"))?;
    }
    if !asked.wait {
        store.sweep_behind();
        return Ok(SUCCESS);
    }
    let mut bar = Bar::new("merging".to_owned());
    store.snapshots().sweep(&|| store.users(), &mut |done, total| bar.show(done, total))?;
    Ok(SUCCESS)
}

/// The VM's own snapshots that come from `id`, parents first.
fn descendants(family: &Family, id: Id) -> Vec<(Id, &str)> {
    let (mut found, mut next) = (Vec::new(), vec![id]);
    while let Some(parent) = next.pop() {
        for own in family.own.iter().filter(|own| family.visible(own.parent) == Some(parent)) {
            if own.id != id && !found.iter().any(|(other, _)| *other == own.id) {
                found.push((own.id, own.name.as_str()));
                next.push(own.id);
            }
        }
    }
    found
}
