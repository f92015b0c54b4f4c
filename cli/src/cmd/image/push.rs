//! `skiff image push`: an image to a registry.

use anyhow::{Context, Result};
use clap::ArgMatches;
use images::registry;

use super::IMAGE;
use super::pull::{Speech, insecure, plain_http, reference};
use crate::cmd::{Verb, print};
use crate::flags::{self, Completes, Count, Flag, Operand};
use crate::progress::Steps;
use crate::store::Store;

/// `skiff image push`.
pub const VERB: Verb = Verb {
    name: "push",
    about: "Send an image to a registry",
    long: "Send an image to a registry of container images. One that was pulled, or imported from a container's image, is sent as it came: its \
           digests are the same. Another is sent as an OCI artifact with its kernel and disks, of which skiff image pull makes the same image; \
           container tools cannot run it. What the registry has already is not sent again. Prints the digest of what is there then.",
    after: String::new,
    flags: || flags::describe(FLAGS),
    operands: &[IMAGE, REFERENCE],
    run: push,
};

const REFERENCE: Operand = Operand {
    name: "REF",
    count: Count::Maybe,
    completes: Completes::Nothing,
    help: "Where to: [HOST[:PORT]/]REPOSITORY[:TAG] [default: what IMAGE is called]",
};

/// What was asked for beside the place.
#[derive(Default)]
struct Asked {
    speech: Speech,
    quiet: bool,
}

const FLAGS: &[Flag<Asked>] = &[
    plain_http(|asked, _| {
        asked.speech.set_plain_http();
        Ok(())
    }),
    insecure(|asked, _| {
        asked.speech.set_insecure();
        Ok(())
    }),
    Flag::quiet("Print the digest, and nothing of what is done", |asked, _| {
        asked.quiet = true;
        Ok(())
    }),
];

fn push(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    let given = IMAGE.one(matches);
    let to = reference(REFERENCE.maybe(matches).as_deref().unwrap_or(&given))?;
    let images = Store::open()?.images();
    let image = images.hold(&given)?;
    let mut steps = Steps::new(asked.quiet);
    images.verify(&image.manifest, &mut |done, total| {
        images::progress::Progress::advance(&mut steps, done, Some(total))
    })?;
    let digest = registry::push(&images, &image, &to, &asked.speech.options(), &mut steps);
    let digest = digest.with_context(|| format!("cannot push {given} to {to}"))?;
    drop(steps);
    print(format!("{digest}\n"))
}
