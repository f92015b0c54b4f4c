//! `skiff image`: guest operating systems by name.

use anyhow::Result;
use images::store::Store as Images;

use super::Group;
use crate::flags::{Completes, Count, Operand};
use crate::progress::Steps;

mod build;
mod container;
mod disk;
mod distribution;
mod export;
pub mod file;
mod import;
mod inspect;
mod list;
mod prune;
mod pull;
mod push;
mod remove;
mod rootfs;
mod tag;
pub mod warm;

/// `skiff image`.
pub const GROUP: Group = Group {
    name: "image",
    about: "Guest operating systems by name: list, make, fetch and remove them",
    long: "Guest operating systems by name. An image is a disk that is never written, a kernel, an initial RAM disk and what a VM of it has if \
           nobody says otherwise; skiff run starts VMs of it. An image has an ID, which is the SHA-256 of all that it is, and any number of names, \
           such as debian:12; a name without a tag means that with :latest. At least 4 first digits of the ID stand for the image, too.",
    verbs: &[
        build::VERB,
        list::LS,
        inspect::VERB,
        tag::VERB,
        remove::VERB,
        prune::VERB,
        import::VERB,
        export::VERB,
        pull::VERB,
        push::VERB,
    ],
};

/// One image.
pub const IMAGE: Operand = Operand {
    name: "IMAGE",
    count: Count::One,
    completes: Completes::Images,
    help: "The image, by a name or its ID",
};

/// Images, at least one.
pub const IMAGES: Operand = Operand {
    name: "IMAGE",
    count: Count::Some,
    completes: Completes::Images,
    help: "The images, by their names or IDs",
};

/// Make the image `text`, which is not there, if there is a recipe for it, or fetch it, if a registry is named. Says whether it is there now.
pub fn make(images: &Images, text: &str) -> Result<bool> {
    let mut steps = Steps::new(false);
    Ok(distribution::by_name(images, text, &mut steps)? || pull::by_reference(images, text, &mut steps)?)
}
