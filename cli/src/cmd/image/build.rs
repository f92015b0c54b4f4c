//! `skiff image build`.

use std::ffi::OsStr;
use std::path::PathBuf;

use anyhow::Result;
use clap::ArgMatches;
use images::debian::{self, Mirror};
use images::name::{Name, NameError};
use images::store::{Image, Store as Images};
use vmm::spec::Memory;

use super::file::show::Screen;
use super::{distribution, file, warm};
use crate::cmd::{Verb, print};
use crate::exit::Usage;
use crate::flags::{self, Completes, Count, Example, Flag, Operand, Takes, utf8};
use crate::progress::Steps;
use crate::store::Store;

pub const VERB: Verb = Verb {
    name: "build",
    about: "Make an image: of a distribution by its name, or as a file says",
    long: "Make an image: of a distribution by its name, or as a file says: from which image it starts, which packages it has, which files are \
           copied into it and which commands are run in it.\n\n\
           A distribution comes from its archive, with its own kernel and init, and with skiff's agent. That needs mmdebstrap, e2fsprogs and root, \
           or for other users uidmap and user namespaces. skiff run makes one that is not there by itself.\n\n\
           The steps of a file are done in a VM. The result of each is kept, and a step is done again only if it, a file that it copies or something \
           before it has changed. Unless the file says warm = false, the image is booted at last and carries a snapshot of that: its VMs start from \
           there in milliseconds. Prints the image's name and ID.",
    after: || format!("{EXAMPLES}\n\n{}", distribution::known()),
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
    completes: Completes::ImagesToBe,
    help: "A distribution, as in debian:12",
};

#[derive(Default)]
struct Asked {
    file: Option<PathBuf>,
    names: Vec<Name>,
    no_cache: bool,
    mirror: Option<String>,
    size: Option<u64>,
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
        (Some(_), None) if asked.mirror.is_some() || asked.size.is_some() => {
            let text = "--mirror and --size are for distributions: the file says size = …".to_owned();
            return Err(Usage(text).into());
        }
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

/// A distribution; with `--warm` alone, any image that is there.
fn by_name(store: &Store, images: &Images, name: &str, asked: &Asked) -> Result<Image> {
    let there =
        images.hold(name).ok().filter(|_| asked.warm && asked.mirror.is_none() && asked.size.is_none());
    let image = match there {
        Some(image) => image,
        None => {
            let wanted: Name = name.parse().map_err(|error: NameError| Usage(error.to_string()))?;
            let called = asked.names.first().unwrap_or(&wanted);
            let options = debian::Options {
                mirror: Mirror::choose(asked.mirror.as_deref()),
                size: asked.size.unwrap_or(debian::SIZE),
            };
            distribution::build(images, &wanted, called, &options, &mut Steps::new(asked.quiet))?;
            images.hold(&called.to_string())?
        }
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
