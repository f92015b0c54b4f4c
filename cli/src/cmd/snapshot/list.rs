//! `skiff snapshot ls` and `show`.

use anyhow::Result;
use clap::ArgMatches;
use serde::Serialize;
use vmm::snapshot::Id;
use vmm::snapshot::manifest::Manifest;
use vmm::snapshot::store::Sizes;

use super::{SNAPSHOT, bytes, family, micros};
use crate::cmd::many::VM;
use crate::cmd::table::table;
use crate::cmd::{Verb, print, print_json};
use crate::flags::{self, Flag};
use crate::store::layers::Family;
use crate::store::{Store, time};

pub const LS: Verb = Verb {
    name: "ls",
    about: "List the snapshots of a VM",
    long: "List the snapshots of a VM, oldest first, with what each adds to the one before. The one that the VM is on has a \
           star: its next snapshot will be a child of that.",
    after: String::new,
    flags: || flags::describe(LS_FLAGS),
    operands: &[VM],
    run: ls,
};

pub const SHOW: Verb = Verb {
    name: "show",
    about: "Show all that is known of a snapshot",
    long: "Show all that is known of a snapshot. Without --json it is the VM's spec as skiff run --config takes it, with the rest \
           as comments.",
    after: String::new,
    flags: || flags::describe(SHOW_FLAGS),
    operands: &[VM, SNAPSHOT],
    run: show,
};

#[derive(Default)]
struct Asked {
    json: bool,
    quiet: bool,
}

const LS_FLAGS: &[Flag<Asked>] = &[QUIET, JSON];
const SHOW_FLAGS: &[Flag<Asked>] = &[JSON];

const QUIET: Flag<Asked> = Flag::quiet("Print names only", |asked, _| {
    asked.quiet = true;
    Ok(())
});

const JSON: Flag<Asked> = Flag::json("Print JSON", |asked, _| {
    asked.json = true;
    Ok(())
});

/// A snapshot as programs see it. The keys stay what they are.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    id: Id,
    created: String,
    /// The name of the one before, if it is still there.
    parent: Option<&'a str>,
    parent_id: Option<Id>,
    comment: &'a str,
    /// What it adds, in bytes of the host's file system.
    memory: u64,
    disks: u64,
    pause_us: u64,
    /// The VM is on it.
    current: bool,
}

/// The same with everything else.
#[derive(Serialize)]
struct Whole<'a> {
    vm: &'a str,
    #[serde(flatten)]
    shown: Shown<'a>,
    arch: &'a str,
    directory: String,
    layers: Vec<Option<String>>,
    spec: &'a str,
}

fn shown<'a>(store: &Store, family: &'a Family, manifest: &'a Manifest) -> Result<Shown<'a>> {
    let Sizes { memory, disks } = store.snapshots().sizes(manifest)?;
    let parent_id = family.visible(manifest.parent);
    let parent = family.own.iter().chain(&family.origins).find(|other| Some(other.id) == parent_id);
    Ok(Shown {
        name: &manifest.name,
        id: manifest.id,
        created: time::rfc3339(manifest.created_ms),
        parent: parent.map(|parent| parent.name.as_str()),
        parent_id,
        comment: &manifest.comment,
        memory,
        disks,
        pause_us: manifest.pause_us,
        current: family.current() == Some(manifest.id),
    })
}

fn ls(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(LS_FLAGS, matches, &mut asked)?;
    let store = Store::open()?;
    let family = family(&store, &VM.one(matches))?;
    if asked.quiet {
        return print(family.own.iter().map(|own| format!("{}\n", own.name)).collect::<String>());
    }
    let all = family.own.iter().map(|own| shown(&store, &family, own)).collect::<Result<Vec<_>>>()?;
    if asked.json {
        return print_json(&all);
    }
    let ages: Vec<u64> = family.own.iter().map(|own| own.created_ms).collect();
    print(people(&all, &ages))
}

fn people(all: &[Shown<'_>], created: &[u64]) -> String {
    let row = |(shown, created): (&Shown<'_>, &u64)| {
        vec![
            format!("{}{}", shown.name, if shown.current { " *" } else { "" }),
            format!("{} ago", time::since(*created)),
            shown.parent.unwrap_or_default().to_owned(),
            bytes(shown.memory),
            bytes(shown.disks),
            shown.comment.to_owned(),
        ]
    };
    let rows: Vec<_> = all.iter().zip(created).map(row).collect();
    table(&["NAME", "CREATED", "PARENT", "MEMORY", "DISKS", "COMMENT"], &rows)
}

fn show(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(SHOW_FLAGS, matches, &mut asked)?;
    let store = Store::open()?;
    let family = family(&store, &VM.one(matches))?;
    let manifest = family.find(&SNAPSHOT.one(matches))?;
    let places = store.places();
    let layer = |layer: Id| places.layer(layer).display().to_string();
    let whole = Whole {
        vm: &family.vm,
        shown: shown(&store, &family, manifest)?,
        arch: &manifest.arch,
        directory: places.snapshot(manifest.id).display().to_string(),
        layers: manifest.disks.iter().map(|point| point.layer.map(layer)).collect(),
        spec: &manifest.spec,
    };
    if asked.json {
        return print_json(&whole);
    }
    print(described(&whole))
}

/// For people, and for `skiff run --config`.
fn described(whole: &Whole<'_>) -> String {
    let shown = &whole.shown;
    let mut text = format!("# {}@{}\n", whole.vm, shown.name);
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            text.push_str(&format!("# {name}: {}\n", value.replace('\n', "\n#   ")));
        }
    };
    line("id", shown.id.to_string());
    line("created", shown.created.clone());
    line("comment", shown.comment.to_owned());
    line("parent", shown.parent.unwrap_or_default().to_owned());
    line("the VM is on it", if shown.current { "yes" } else { "no" }.to_owned());
    line("processor", whole.arch.to_owned());
    line("memory", bytes(shown.memory));
    line("disks", bytes(shown.disks));
    line("paused", micros(shown.pause_us));
    line("directory", whole.directory.clone());
    for layer in whole.layers.iter().flatten() {
        line("layer", layer.clone());
    }
    text.push_str(whole.spec);
    text
}
