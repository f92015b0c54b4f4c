//! `skiff image build`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ArgMatches;
use images::name::Name;
use images::store::{Image, Store as Images, StoreError};

use super::file::show::Screen;
use super::{file, warm};
use crate::cmd::{Verb, print};
use crate::exit::Usage;
use crate::flags::{self, Completes, Count, Example, Flag, Operand, Takes, utf8};
use crate::store::Store;

pub const VERB: Verb = Verb {
    name: "build",
    about: "Make an image: of a distribution by its name, or as a file says",
    long: "Make an image: of a distribution by its name, or as a file says: from which image it starts, which packages it has, which files are \
           copied into it and which commands are run in it.\n\n\
           The steps of a file are done in a VM. The result of each is kept, and a step is done again only if it, a file that it copies or something \
           before it has changed. Unless the file says warm = false, the image is booted at last and carries a snapshot of that: its VMs start from \
           there in milliseconds. Prints the image's name and ID.",
    after: || EXAMPLES.to_owned(),
    flags: || flags::describe(FLAGS),
    operands: &[NAME],
    run: build,
};

const EXAMPLES: &str = "\
Examples:
  skiff image build debian:12
  skiff image build debian:12 --warm
  skiff image build -f web.toml -t web:1.2

A file:
  base = \"debian:12\"
  packages = [\"nginx\"]
  command = [\"nginx\", \"-g\", \"daemon off;\"]
  publish = [\"8080:80\"]

  [[step]]
  copy = [\"site/\", \"/var/www/html\"]

  [[step]]
  run = \"nginx -t\"

Keys of a file:
  base name packages user workdir env ports publish entrypoint command cpus memory size warm
  of a step: run env user workdir timeout, or copy owner mode exclude";

const NAME: Operand = Operand {
    name: "NAME",
    count: Count::Maybe,
    completes: Completes::Images,
    help: "A distribution, as in debian:12",
};

#[derive(Default)]
struct Asked {
    file: Option<PathBuf>,
    names: Vec<Name>,
    no_cache: bool,
    warm: bool,
    quiet: bool,
}

const FLAGS: &[Flag<Asked>] = &[
    Flag {
        name: "file",
        short: Some('f'),
        takes: Takes::File("FILE"),
        help: "Make what this file says",
        long: "What it copies is in its directory.",
        example: Example { args: &["-f", "web.toml"], toml: "" },
        apply: |asked, value| {
            asked.file = Some(PathBuf::from(value));
            Ok(())
        },
    },
    Flag {
        name: "tag",
        short: Some('t'),
        takes: Takes::Texts("NAME"),
        help: "Call the image so [default: as the file says, or its directory is called]",
        long: "",
        example: Example { args: &["-t", "web:1.2"], toml: "" },
        apply: |asked, value| {
            asked.names.push(utf8(value)?.parse()?);
            Ok(())
        },
    },
    Flag {
        name: "no-cache",
        short: None,
        takes: Takes::Nothing,
        help: "Do every step of the file again",
        long: "As when packages are to be those of today.",
        example: Example { args: &["--no-cache"], toml: "" },
        apply: |asked, _| {
            asked.no_cache = true;
            Ok(())
        },
    },
    Flag {
        name: "warm",
        short: None,
        takes: Takes::Nothing,
        help: "Boot the image once and keep a snapshot of that, from which its VMs start",
        long: "With an image that is warm, take a new one.",
        example: Example { args: &["--warm"], toml: "" },
        apply: |asked, _| {
            asked.warm = true;
            Ok(())
        },
    },
    Flag::quiet("Print the ID only, and nothing of what is done for it", |asked, _| {
        asked.quiet = true;
        Ok(())
    }),
];

fn build(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    let (store, quiet) = (Store::open()?, asked.quiet);
    let images = store.images();
    let image = match (asked.file.take(), NAME.maybe(matches)) {
        (Some(path), None) => {
            let (names, no_cache) = (asked.names, asked.no_cache);
            let again = asked.warm;
            let image = file::build(&store, &images, &file::Asked { file: path, names, no_cache, quiet })?;
            if again {
                warm::make(&store, &images, &image, &mut Screen::new(quiet, 0))?;
            }
            image
        }
        (None, Some(name)) if !asked.no_cache => by_name(&store, &images, &name, &asked)?,
        (None, Some(_)) => {
            return Err(Usage("--no-cache goes with -f FILE: a distribution has no steps".to_owned()).into());
        }
        (Some(_), Some(_)) => {
            return Err(Usage(
                "give the name of a distribution or -f FILE, not both: -t names the result".to_owned(),
            )
            .into());
        }
        (None, None) => {
            return Err(Usage(
                "nothing to build: give the name of a distribution, as in debian:12, or -f FILE".to_owned(),
            )
            .into());
        }
    };
    match quiet {
        true => print(format!("{}\n", image.id)),
        false => print(format!("{} {}\n", image.called(), image.id.short())),
    }
}

/// A distribution, or with `--warm` any image that is there.
fn by_name(store: &Store, images: &Images, name: &str, asked: &Asked) -> Result<Image> {
    let image = match images.hold(name) {
        Ok(image) if asked.warm => image,
        Ok(_) | Err(StoreError::Unknown { .. }) => {
            if !super::make(images, name)? {
                bail!(
                    "there is no recipe for {name}: build from a file with -f FILE, or get an image with skiff image import or pull"
                );
            }
            images.hold(name)?
        }
        Err(error) => return Err(error.into()),
    };
    for name in &asked.names {
        images.tag(name, &image.id)?;
    }
    if asked.warm {
        warm::make(store, images, &image, &mut Screen::new(asked.quiet, 0))?;
        store.sweep_behind();
    }
    Ok(image)
}
