//! `skiff image rm`: images that are not needed any more.

use anyhow::Result;
use clap::ArgMatches;
use images::digest::Digest;
use images::name::Name;

use super::IMAGES;
use crate::cmd::{Verb, many};
use crate::flags::{self, Example, Flag, Takes};
use crate::store::{Store, images::check_unused};

/// `skiff image rm`.
pub const VERB: Verb = Verb {
    name: "rm",
    about: "Remove images",
    long: "Remove images by their names or IDs. Of an image that has several names, a name alone goes; with the last one, or by its ID, the image \
           goes, and what nobody else needs of it. An image that VMs use stays, and so does its last name unless -f is there. Prints what was removed.",
    after: String::new,
    flags: || flags::describe(FLAGS),
    operands: &[IMAGES],
    run: rm,
};

#[derive(Default)]
struct Asked {
    force: bool,
}

const FLAGS: &[Flag<Asked>] = &[Flag {
    name: "force",
    short: Some('f'),
    takes: Takes::Nothing,
    help: "Take the names of images that VMs use, too",
    long: "The VMs are not harmed: the image stays without a name for as long as they need it.",
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
    let mut gone = Vec::new();
    let removed =
        IMAGES.given(matches).iter().map(|text| remove(&store, text, asked.force, &mut gone)).collect();
    let code = many::tell(removed)?;
    store.sweep_images(&gone)?;
    // One that was warm may have had a snapshot of its own.
    store.sweep_behind();
    Ok(code)
}

/// Says what is gone, a line each. Of which image is put into `gone`.
fn remove(store: &Store, text: &str, force: bool, gone: &mut Vec<Digest>) -> Result<String> {
    let images = store.images();
    let image = images.resolve(text)?;
    let name = text.parse::<Name>().ok().filter(|name| image.names.contains(name));
    let going = match name {
        Some(name) => vec![name],
        None => image.names.clone(),
    };
    if going.len() == image.names.len() && !force {
        check_unused(text, &store.vms_of(&image, &store.all()?))?;
    }
    let mut lines = String::new();
    for name in &going {
        images.untag(name)?;
        lines.push_str(&format!("{name}\n"));
    }
    gone.push(image.id);
    if going.is_empty() {
        lines.push_str(&format!("{}\n", image.id.short()));
    }
    Ok(lines)
}
