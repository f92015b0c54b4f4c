//! `skiff image tag`: another name for an image.

use anyhow::Result;
use clap::ArgMatches;
use images::name::Name;

use super::IMAGE;
use crate::cmd::Verb;
use crate::exit::{SUCCESS, Usage};
use crate::flags::{Completes, Count, Operand};
use crate::store::Store;

/// `skiff image tag`.
pub const VERB: Verb = Verb {
    name: "tag",
    about: "Give an image another name",
    long: "Give an image another name. If another image has the name, that one loses it. The names that the image has stay.",
    after: String::new,
    flags: Vec::new,
    operands: &[IMAGE, NAME],
    run: tag,
};

const NAME: Operand = Operand {
    name: "NAME",
    count: Count::One,
    completes: Completes::Images,
    help: "The name it is to have, too, such as web:1",
};

fn tag(matches: &ArgMatches) -> Result<u8> {
    let name: Name =
        NAME.one(matches).parse().map_err(|error: images::name::NameError| Usage(error.to_string()))?;
    let images = Store::open()?.images();
    let image = images.hold(&IMAGE.one(matches))?;
    images.tag(&name, &image.id)?;
    Ok(SUCCESS)
}
