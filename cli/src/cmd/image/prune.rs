//! `skiff image prune`: what nobody needs of the images.

use anyhow::Result;
use clap::ArgMatches;
use images::store::Pruned;

use crate::cmd::snapshot::bytes;
use crate::cmd::{Verb, print};
use crate::flags::{self, Example, Flag, Takes};
use crate::progress::Bar;
use crate::store::{Store, images::tell_wrong};

/// `skiff image prune`.
pub const VERB: Verb = Verb {
    name: "prune",
    about: "Free what nobody needs of the images",
    long: "Free what nobody needs of the images: those without a name that no VM and no snapshot uses, files of none, the results of build steps \
           (the next build of a file does them again), what tests start from (the next skiff test makes it again), and what was left behind by processes that were killed. Says what it has freed.",
    after: String::new,
    flags: || flags::describe(FLAGS),
    operands: &[],
    run: prune,
};

#[derive(Default)]
struct Asked {
    all: bool,
    dry_run: bool,
}

const FLAGS: &[Flag<Asked>] = &[
    Flag {
        name: "all",
        short: Some('a'),
        takes: Takes::Nothing,
        help: "Every image that no VM uses, those with names too, and unfinished downloads",
        long: "",
        example: Example { args: &["-a"], toml: "" },
        apply: |asked, _| {
            asked.all = true;
            Ok(())
        },
    },
    Flag::dry_run(|asked, _| {
        asked.dry_run = true;
        Ok(())
    }),
];

fn prune(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    let store = Store::open()?;
    let images = store.images();
    let mut lines = String::new();
    if asked.all {
        let (all, wrong) = images.list()?;
        tell_wrong(wrong);
        let vms = store.all()?;
        for image in all.iter().filter(|image| store.vms_of(image, &vms).is_empty()) {
            for name in &image.names {
                lines.push_str(&format!(
                    "{} {name}\n",
                    if asked.dry_run { "would remove" } else { "removed" }
                ));
                if !asked.dry_run {
                    images.untag(name)?;
                }
            }
        }
    }
    if asked.dry_run {
        let free = images.would_prune(|| store.image_needs())?;
        for (count, what) in [(store.steps()?, "build steps"), (store.free_bases()?, "snapshots of tests")] {
            if count > 0 {
                lines.push_str(&format!("would forget {count} {what}\n"));
            }
        }
        let more = if lines.is_empty() { "" } else { ", and what those take" };
        return print(format!("{lines}would free {}{more}\n", told(&free)));
    }
    for (count, what) in
        [(store.forget_steps()?, "build steps"), (store.forget_bases(|_| true)?, "snapshots of tests")]
    {
        if count > 0 {
            lines.push_str(&format!("forgot {count} {what}\n"));
        }
    }
    let mut bar = Bar::new("freeing what snapshots took".to_owned());
    let freed = store.free(asked.all, &mut |done, total| bar.show(done, total))?;
    drop(bar);
    let pruned = Pruned { bytes: freed.bytes(), ..freed.images? };
    print(format!("{lines}freed {}\n", told(&pruned)))
}

/// `12.0 MiB: images 1, files 3`.
pub fn told(pruned: &Pruned) -> String {
    format!("{}: images {}, files {}", bytes(pruned.bytes), pruned.images.len(), pruned.blobs.len())
}
