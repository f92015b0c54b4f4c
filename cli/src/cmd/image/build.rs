//! `skiff image build`: an image of a distribution, by its name.

use std::ffi::OsStr;

use anyhow::{Context, Result};
use clap::ArgMatches;
use images::debian::{self, Mirror, Recipe};
use images::name::Name;
use images::progress::Progress;
use images::store::Store as Images;
use vmm::spec::Memory;

use crate::cmd::{Verb, print};
use crate::exit::Usage;
use crate::flags::{self, Completes, Count, Example, Flag, Operand, Takes, utf8};
use crate::progress::Steps;
use crate::store::Store;

/// `skiff image build`.
pub const VERB: Verb = Verb {
    name: "build",
    about: "Make an image of a distribution",
    long: "Make an image of a distribution from its archive, with its own kernel and init, and with skiff's agent. It needs mmdebstrap, e2fsprogs \
           and root, or for other users uidmap and user namespaces. Prints the image's name. skiff run makes an image that is not there \
           by itself.",
    after: known,
    flags: || flags::describe(FLAGS),
    operands: &[NAME],
    run: build,
};

const NAME: Operand = Operand {
    name: "NAME",
    count: Count::One,
    completes: Completes::Nothing,
    help: "What to make, such as debian:12",
};

/// What was asked for beside the name.
#[derive(Default)]
struct Asked {
    tag: Option<Name>,
    mirror: Option<String>,
    size: Option<u64>,
    quiet: bool,
}

const FLAGS: &[Flag<Asked>] = &[
    Flag {
        name: "tag",
        short: Some('t'),
        takes: Takes::Text("NAME"),
        help: "Call the image so instead",
        long: "",
        example: Example { args: &["-t", "base:1"], toml: "" },
        apply: |asked, value| {
            asked.tag = Some(name(utf8(value)?)?);
            Ok(())
        },
    },
    Flag {
        name: "mirror",
        short: None,
        takes: Takes::Text("URL"),
        help: "Fetch Debian's packages from this archive",
        long: "By default it is the one in $SKIFF_DEBIAN_MIRROR, else the one that this machine's apt has, else deb.debian.org. Security updates \
               are taken from beside it. In the image it is always deb.debian.org.",
        example: Example { args: &["--mirror", "http://mirror.example/debian"], toml: "" },
        apply: |asked, value| {
            asked.mirror = Some(address(utf8(value)?)?);
            Ok(())
        },
    },
    Flag {
        name: "size",
        short: None,
        takes: Takes::Text("SIZE"),
        help: "What the image's disk can hold [default: 20G]",
        long: "The disk takes no more room on the host than what is in it. A VM's disk can be larger, never smaller.",
        example: Example { args: &["--size", "8G"], toml: "" },
        apply: |asked, value| {
            asked.size = Some(size(value)?);
            Ok(())
        },
    },
    Flag::quiet("Print the name, and nothing of what is done for it", |asked, _| {
        asked.quiet = true;
        Ok(())
    }),
];

/// What stands below the flags in its help.
fn known() -> String {
    let names: Vec<&str> =
        debian::all().iter().flat_map(|recipe| &recipe.names).map(String::as_str).collect();
    format!("Known: {}", names.join(", "))
}

fn build(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    let wanted = name(&NAME.one(matches))?;
    let recipe = Recipe::named(&wanted)
        .ok_or_else(|| Usage(format!("there is no recipe for {wanted}. {}", known())))?;
    let images = Store::open()?.images();
    let mut steps = Steps::new(asked.quiet);
    let called = asked.tag.clone().unwrap_or_else(|| wanted.clone());
    let options = debian::Options {
        mirror: Mirror::choose(asked.mirror.as_deref()),
        size: asked.size.unwrap_or(debian::SIZE),
    };
    with_recipe(&images, &wanted, recipe, &called, &options, &mut steps)?;
    drop(steps);
    print(format!("{called}\n"))
}

/// Make the image `text`, which is not there, if there is a recipe for it. Says whether there is.
pub fn by_name(images: &Images, text: &str, progress: &mut dyn Progress) -> Result<bool> {
    let Some((name, recipe)) =
        text.parse::<Name>().ok().and_then(|name| Recipe::named(&name).map(|recipe| (name, recipe)))
    else {
        return Ok(false);
    };
    let options = debian::Options { mirror: Mirror::choose(None), size: debian::SIZE };
    with_recipe(images, &name, recipe, &name, &options, progress).map(|()| true)
}

fn with_recipe(
    images: &Images,
    wanted: &Name,
    recipe: &Recipe,
    called: &Name,
    options: &debian::Options,
    progress: &mut dyn Progress,
) -> Result<()> {
    let manifest = debian::build(images, wanted, recipe, crate::agent::PROGRAM, options, progress)
        .with_context(|| format!("cannot build {wanted}"))?;
    let id = images.put(&manifest)?;
    Ok(images.tag(called, &id)?)
}

fn name(text: &str) -> Result<Name> {
    text.parse().map_err(|error: images::name::NameError| Usage(error.to_string()).into())
}

/// An archive's, which becomes a word of apt's sources.
fn address(text: &str) -> Result<String> {
    let begins = ["http://", "https://", "file:/"].iter().any(|start| text.starts_with(start));
    if !begins || text.contains(char::is_whitespace) {
        return Err(Usage(format!(
            "{text:?} is no archive's address: write it as in http://deb.debian.org/debian"
        ))
        .into());
    }
    Ok(text.to_owned())
}

fn size(value: &OsStr) -> Result<u64> {
    let text = utf8(value)?;
    text.parse::<Memory>()
        .ok()
        .map(|size| size.0)
        .filter(|size| (1 << 30..=16 << 40).contains(size))
        .ok_or_else(|| Usage(format!("{text:?} is no disk's size: write it as in 8G, from 1G to 16T")).into())
}
