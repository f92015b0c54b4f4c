//! `skiff system`: what VMs, snapshots and layers take, and how it is freed.

use std::path::Path;

use anyhow::Result;
use clap::ArgMatches;
use serde::Serialize;

use super::snapshot::bytes;
use super::table::table;
use super::{Group, Verb, print, print_json};
use crate::flags::{self, Example, Flag, Takes};
use crate::progress::Bar;
use crate::store::Store;

/// `skiff system`.
pub const GROUP: Group = Group {
    name: "system",
    about: "See and free what skiff keeps on this host's disks",
    long: "",
    verbs: &[DF, PRUNE],
};

const DF: Verb = Verb {
    name: "df",
    about: "Show what VMs, snapshots, layers and images take",
    long: "Show what VMs, snapshots, layers and images take of the host's file systems, and what skiff system prune would free of it. What a merge \
           frees is not known before, and not counted.",
    after: String::new,
    flags: || flags::describe(DF_FLAGS),
    operands: &[],
    run: df,
};

const PRUNE: Verb = Verb {
    name: "prune",
    about: "Free what nobody needs",
    long: "Free what nobody needs: removed snapshots and layers, images without a name that no VM uses, and what was left behind by processes that were killed. It goes \
           on by itself after every removal; this waits for its end. Says what it has freed.",
    after: String::new,
    flags: || flags::describe(PRUNE_FLAGS),
    operands: &[],
    run: prune,
};

#[derive(Default)]
struct Asked {
    json: bool,
    dry_run: bool,
    force: bool,
}

const DF_FLAGS: &[Flag<Asked>] = &[Flag::json("Print a JSON object", |asked, _| {
    asked.json = true;
    Ok(())
})];

const PRUNE_FLAGS: &[Flag<Asked>] = &[
    Flag::dry_run(|asked, _| {
        asked.dry_run = true;
        Ok(())
    }),
    Flag {
        name: "force",
        short: Some('f'),
        takes: Takes::Nothing,
        help: "Remove snapshots whose manifests are damaged, too",
        long: "While there is one, nothing that it might need is freed.",
        example: Example { args: &["-f"], toml: "" },
        apply: |asked, _| {
            asked.force = true;
            Ok(())
        },
    },
];

/// Of one kind. The keys stay what they are.
#[derive(Serialize)]
struct Row {
    count: usize,
    /// In bytes of the host's file system.
    size: u64,
    reclaimable: u64,
}

/// All kinds.
#[derive(Serialize)]
struct Shown {
    vms: Row,
    snapshots: Row,
    /// Removed ones among the snapshots, which stay while others need them.
    hidden_snapshots: usize,
    layers: Row,
    images: Row,
    /// What tests start from: of the snapshots.
    test_bases: Row,
    /// Something is to be merged, which frees more.
    merges: bool,
}

fn df(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(DF_FLAGS, matches, &mut asked)?;
    let store = Store::open()?;
    let vms = store.entries()?;
    let snapshots = store.snapshots();
    let usage = snapshots.usage()?;
    let garbage = snapshots.garbage(&|| store.users())?;
    let shown = Shown {
        vms: Row {
            count: vms.len(),
            size: vms.iter().map(|vm| size_of_dir(vm.dir())).fold(0, u64::saturating_add),
            reclaimable: 0,
        },
        snapshots: Row {
            count: usage.snapshots,
            size: usage.snapshot_bytes,
            reclaimable: garbage.snapshot_bytes,
        },
        hidden_snapshots: usage.hidden,
        layers: Row { count: usage.layers, size: usage.layer_bytes, reclaimable: garbage.layer_bytes },
        images: images(&store)?,
        test_bases: test_bases(&store)?,
        merges: garbage.merges,
    };
    if asked.json {
        return print_json(&shown);
    }
    print(people(&shown))
}

/// Images, their files counted once.
fn images(store: &Store) -> Result<Row> {
    let images = store.images();
    let reclaimable = images.would_prune(|| store.image_needs())?.bytes;
    Ok(Row { count: images.ids()?.len(), size: images.size()?, reclaimable })
}

/// What tests start from. It is part of the snapshots and layers.
fn test_bases(store: &Store) -> Result<Row> {
    let snapshots = store.snapshots();
    let (mut count, mut size) = (0_usize, 0_u64);
    for (_, base) in store.bases()? {
        count = count.saturating_add(1);
        // One that cannot be read takes what it takes, and is made anew.
        let found = base.snapshot.parse().ok().and_then(|id| snapshots.get(id).ok());
        if let Some(sizes) = found.and_then(|manifest| snapshots.sizes(&manifest).ok()) {
            size = size.saturating_add(sizes.memory).saturating_add(sizes.disks);
        }
    }
    Ok(Row { count, size, reclaimable: 0 })
}

fn people(shown: &Shown) -> String {
    let row = |kind: &str, row: &Row| {
        vec![kind.to_owned(), row.count.to_string(), bytes(row.size), bytes(row.reclaimable)]
    };
    let rows = [
        row("VMs", &shown.vms),
        row("Snapshots", &shown.snapshots),
        row("Layers", &shown.layers),
        row("Images", &shown.images),
        row("Test bases", &shown.test_bases),
    ];
    let mut text = table(&["KIND", "COUNT", "SIZE", "RECLAIMABLE"], &rows);
    if shown.merges {
        text.push_str("There are removed snapshots to merge: skiff system prune does it.\n");
    }
    text
}

/// What the files of a directory take, as far as they can be read.
fn size_of_dir(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| Some(entry.metadata().ok()?.blocks().saturating_mul(512)));
    sizes.fold(0, u64::saturating_add)
}

fn prune(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(PRUNE_FLAGS, matches, &mut asked)?;
    let store = Store::open()?;
    // So that VMs which were killed are no users any more.
    store.all()?;
    let snapshots = store.snapshots();
    if asked.dry_run {
        super::snapshot::tell_wrong(snapshots.all()?.1);
        let garbage = snapshots.garbage(&|| store.users())?;
        let images = store.images().would_prune(|| store.image_needs())?;
        return print(format!(
            "would free {}: snapshots {}, layers {}, images {}{}\n",
            bytes(garbage.bytes().saturating_add(images.bytes)),
            garbage.snapshots.len(),
            garbage.layers.len(),
            images.images.len(),
            if garbage.merges { ", and what merges free" } else { "" }
        ));
    }
    if asked.force {
        for error in snapshots.remove_damaged()? {
            crate::exit::say(&anyhow::Error::new(error).context("removed"));
        }
    }
    let mut bar = Bar::new("merging".to_owned());
    let freed = store.free(false, &mut |done, total| bar.show(done, total));
    drop(bar);
    let freed = freed?;
    // What they might need stays.
    super::snapshot::tell_wrong(snapshots.all()?.1);
    if let Err(error) = &freed.images {
        crate::terminal::note(&format!("skiff: warning: {error:#}"));
    }
    print(format!(
        "freed {}: snapshots {}, layers {}, images {}\n",
        bytes(freed.bytes()),
        freed.swept.snapshots,
        freed.swept.layers,
        freed.images.as_ref().map_or(0, |pruned| pruned.images.len())
    ))
}
