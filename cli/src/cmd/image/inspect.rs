//! `skiff image inspect`: all that is known of images.

use anyhow::{Context, Result};
use clap::ArgMatches;
use images::manifest::{Blob, Manifest};
use images::store::{Image, Warm};
use serde::Serialize;

use super::IMAGES;
use super::list::Shown;
use crate::cmd::snapshot::bytes;
use crate::cmd::{Verb, many, print_json};
use crate::exit::{self, SUCCESS};
use crate::flags::{self, Flag};
use crate::store::Store;
use crate::store::entry::Look;

/// `skiff image inspect`.
pub const VERB: Verb = Verb {
    name: "inspect",
    about: "Show all that is known of images",
    long: "Show all that is known of images: where they are from, their files, what a VM of them has if nobody says otherwise, and which VMs are \
           of them. Without --json it is TOML.",
    after: String::new,
    flags: || flags::describe(FLAGS),
    operands: &[IMAGES],
    run: inspect,
};

#[derive(Default)]
struct Asked {
    json: bool,
}

const FLAGS: &[Flag<Asked>] = &[Flag::json("Print a JSON array of objects", |asked, _| {
    asked.json = true;
    Ok(())
})];

/// An image with everything. The keys stay what they are.
#[derive(Serialize)]
struct Whole {
    #[serde(flatten)]
    shown: Shown,
    files: Vec<File>,
    warm_snapshot: Option<Warm>,
    manifest: Manifest,
}

/// One of its files.
#[derive(Serialize)]
struct File {
    /// What it is of the image.
    role: String,
    path: String,
    /// In bytes.
    size: u64,
}

fn inspect(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    let store = Store::open()?;
    let vms = store.all()?;
    let images = store.images();
    let results: Vec<Result<Whole>> =
        IMAGES.given(matches).iter().map(|text| whole(&store, &images.resolve(text)?, &vms)).collect();
    if !asked.json {
        return many::tell(results.into_iter().map(|result| described(&result?)).collect());
    }
    let (mut found, mut code) = (Vec::new(), SUCCESS);
    for result in results {
        match result {
            Ok(whole) => found.push(whole),
            Err(error) => {
                exit::say(&error);
                code = exit::FAILURE;
            }
        }
    }
    print_json(&found)?;
    Ok(code)
}

fn whole(store: &Store, image: &Image, vms: &[Look]) -> Result<Whole> {
    let images = store.images();
    let manifest = image.manifest.clone();
    let file = |role: &str, blob: &Blob| File {
        role: role.to_owned(),
        path: images.blob_path(&blob.digest).display().to_string(),
        size: blob.size,
    };
    let mut files = vec![file("kernel", &manifest.kernel)];
    files.extend(manifest.initrd.iter().map(|initrd| file("initrd", initrd)));
    files.extend(manifest.disk.layers.iter().map(|layer| file("disk", layer)));
    let known = |file: &File| file.path.clone();
    let paths: Vec<String> = files.iter().map(known).collect();
    let others = manifest.blobs().into_iter().map(|blob| file("content", &blob));
    files.extend(others.filter(|file| !paths.contains(&file.path)));
    Ok(Whole {
        shown: Shown::new(store, &images, image, vms)?,
        files,
        warm_snapshot: images.warm(&image.id)?,
        manifest,
    })
}

/// For people.
fn described(whole: &Whole) -> Result<String> {
    let shown = &whole.shown;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("# {name}: {}\n", value.replace('\n', " ")));
        }
    };
    line("names", &shown.names.join(", "));
    line("id", &shown.id);
    line("created", &shown.created);
    line("size", &bytes(shown.size));
    line("used by", &shown.vms.join(", "));
    for file in &whole.files {
        line(&file.role, &file.path);
    }
    if let Some(warm) = &whole.warm_snapshot {
        line("starts from snapshot", &warm.snapshot);
    }
    text.push_str(&toml::to_string(&whole.manifest).context("the image cannot be written as TOML")?);
    Ok(text)
}
