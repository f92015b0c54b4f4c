//! `skiff cp`: which files go where. How they go is in [`crate::transfer`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::message::Looked;
use anyhow::{Context as _, Result, bail};
use clap::ArgMatches;

use super::{Verb, print};
use crate::exit::{SUCCESS, Usage};
use crate::flags::{self, Completes, Count, Example, Flag, Operand, Takes};
use crate::guest::Guest;
use crate::held::Dir;
use crate::store::{Store, names};
use crate::transfer::{self, Landing};

pub const VERB: Verb = Verb {
    name: "cp",
    about: "Copy files and trees into a VM, or out of it",
    long: "Copy files and trees into a VM, or out of it, by the agent in its guest: one of SRC and DST is VM:PATH. Into a directory that is \
           there goes SRC by its own name, of a directory SRC/. what is in it; otherwise DST is what SRC is to be called. Modes, times and \
           links are kept. In the guest, all is root's; here, yours. A relative path in the guest begins at root's home. A local name with \
           a colon in it is written ./NAME.\n\n\
           As SRC, - is a tar archive from standard input, to be unpacked in the directory DST; as DST, one to standard output.",
    after: || EXAMPLES.to_owned(),
    flags: || flags::describe(FLAGS),
    operands: &[SRC, DST],
    run,
};

const EXAMPLES: &str = "\
Examples:
  skiff cp app.conf web:/etc/app.conf
  skiff cp src web:/root/
  skiff cp web:/var/log/. logs
  skiff cp web:/etc - | tar t";

const SRC: Operand =
    Operand { name: "SRC", count: Count::One, completes: Completes::Files, help: "A path, VM:PATH or -" };
const DST: Operand =
    Operand { name: "DST", count: Count::One, completes: Completes::Files, help: "A path, VM:PATH or -" };

#[derive(Default)]
struct Asked {
    archive: bool,
    follow: bool,
    timeout: Option<Duration>,
}

const FLAGS: &[Flag<Asked>] = &[
    Flag {
        name: "archive",
        short: Some('a'),
        takes: Takes::Nothing,
        help: "Keep the owners of files, by number; out of a VM as root only",
        long: "",
        example: Example { args: &["-a"], toml: "" },
        apply: |asked, _| {
            asked.archive = true;
            Ok(())
        },
    },
    Flag {
        name: "follow-link",
        short: Some('L'),
        takes: Takes::Nothing,
        help: "If SRC is a symbolic link, copy what it leads to; one to a directory is followed in any case",
        long: "",
        example: Example { args: &["-L"], toml: "" },
        apply: |asked, _| {
            asked.follow = true;
            Ok(())
        },
    },
    Flag {
        name: "timeout",
        short: None,
        takes: Takes::Text("SECONDS"),
        help: "How long a guest that boots may take until it is ready [default: 300; 3 if nothing is known of an agent in it]",
        long: "A number of seconds, or one with s, m or h behind it.",
        example: Example { args: &["--timeout", "30"], toml: "" },
        apply: |asked, value| {
            asked.timeout = Some(super::exec::span(value)?);
            Ok(())
        },
    },
];

/// One side of a copy.
#[derive(Debug, PartialEq)]
enum Side {
    Stream,
    Here(String),
    Guest { vm: String, path: String },
}

impl Side {
    fn parse(text: String) -> Result<Self> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        if text.is_empty() {
            return Err(Usage("a path is empty: name a file or a directory".to_owned()).into());
        }
        Ok(match text.split_once(':').filter(|(vm, _)| names::check(vm).is_ok()) {
            Some((_, "")) => {
                return Err(Usage(format!("'{text}' names no path in the guest: write {text}/")).into());
            }
            Some((vm, path)) => Self::Guest { vm: vm.to_owned(), path: path.to_owned() },
            None => Self::Here(text),
        })
    }
}

fn run(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    let guest = |vm: &str| Guest::find(&Store::open()?, vm, asked.timeout);
    match (Side::parse(SRC.one(matches))?, Side::parse(DST.one(matches))?) {
        (Side::Here(from), Side::Guest { vm, path }) => put(&guest(&vm)?, &from, &path, &asked)?,
        (Side::Guest { vm, path }, Side::Here(to)) => get(&guest(&vm)?, &path, &to, &asked)?,
        (Side::Stream, Side::Guest { vm, path }) => {
            transfer::put_stream(&guest(&vm)?, &path, asked.archive)?;
        }
        (Side::Guest { vm, path }, Side::Stream) => {
            return transfer::get_stream(&guest(&vm)?, &path, asked.follow);
        }
        (Side::Guest { .. }, Side::Guest { .. }) => {
            let message =
                "files go from one VM to another by way of here: skiff cp A:PATH - | skiff cp - B:DIR";
            return Err(Usage(message.to_owned()).into());
        }
        _ => {
            let message = "neither side is in a VM: write one as VM:PATH";
            return Err(Usage(message.to_owned()).into());
        }
    }
    print("").map(|_| SUCCESS)
}

/// Of a directory, what is in it and not itself.
fn is_content(path: &str) -> bool {
    path == "." || path.ends_with("/.")
}

/// A file or a tree into the guest.
fn put(guest: &Guest, from: &str, to: &str, asked: &Asked) -> Result<()> {
    let source = Path::new(from);
    let found = if asked.follow { source.metadata() } else { source.symlink_metadata() };
    let found = found.with_context(|| format!("cannot copy {from}"))?;
    let is_dir = found.is_dir() || source.is_dir();
    let (dir, name) = match transfer::look(guest, to)? {
        Looked::Directory if is_dir && is_content(from) => (to.to_owned(), PathBuf::from(".")),
        Looked::Directory => (to.to_owned(), own_name(source)?),
        Looked::File { .. } if is_dir => bail!("{to} in the guest is no directory, and {from} is one"),
        Looked::Nothing if !is_dir && to.ends_with('/') => bail!("there is no directory {to} in the guest"),
        Looked::Nothing | Looked::File { .. } => split(to),
    };
    transfer::put(guest, source, is_dir, asked.follow, &dir, &name, asked.archive)
        .with_context(|| format!("cannot copy {from}"))
}

/// A file or a tree out of the guest.
fn get(guest: &Guest, from: &str, to: &str, asked: &Asked) -> Result<()> {
    let target = Path::new(to);
    let is_dir = match transfer::look(guest, from)? {
        Looked::Nothing => bail!("there is no {from} in the guest"),
        Looked::Directory => true,
        Looked::File { .. } => false,
    };
    let landing = match target.metadata() {
        Ok(found) if found.is_dir() && is_dir && is_content(from) => Landing::Content(held(target)?),
        Ok(found) if found.is_dir() => {
            let name =
                Path::new(from).file_name().context("the guest's root directory has no name: write VM:/.")?;
            Landing::Named(held(target)?, name.to_owned())
        }
        Ok(_) if is_dir => bail!("{to} is no directory, and {from} in the guest is one"),
        Err(_) if !is_dir && to.ends_with('/') => bail!("there is no directory {to}"),
        Ok(_) | Err(_) => {
            let name = target.file_name().with_context(|| format!("there is no directory {to}"))?;
            Landing::Named(held(target.parent().unwrap_or(Path::new(".")))?, name.to_owned())
        }
    };
    transfer::get(guest, from, is_dir, asked.follow, &landing, &transfer::options(asked.archive))
        .map(drop)
        .with_context(|| format!("cannot copy {from} to {to}"))
}

fn held(dir: &Path) -> Result<Dir> {
    Dir::open(dir).with_context(|| format!("cannot write in {}", dir.display()))
}

/// What a file that is here is called.
fn own_name(path: &Path) -> Result<PathBuf> {
    if let Some(name) = path.file_name() {
        return Ok(name.into());
    }
    let real = path.canonicalize().with_context(|| format!("cannot copy {}", path.display()))?;
    Ok(real.file_name().context("the root directory has no name: write /.")?.into())
}

/// A guest's path as a directory and a name in it.
fn split(path: &str) -> (String, PathBuf) {
    let path = path.trim_end_matches('/');
    match path.rsplit_once('/') {
        Some(("", name)) => ("/".to_owned(), name.into()),
        Some((dir, name)) => (dir.to_owned(), name.into()),
        None => (".".to_owned(), path.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_a_vms_if_it_begins_with_a_name_and_a_colon() {
        let side = |text: &str| Side::parse(text.to_owned());
        let web = |path: &str| Side::Guest { vm: "web".to_owned(), path: path.to_owned() };
        assert_eq!(side("web:/etc/a:b").unwrap(), web("/etc/a:b"));
        assert_eq!(side("web:notes").unwrap(), web("notes"));
        for here in ["./web:x", "/web:x", "a b:c", "x"] {
            assert_eq!(side(here).unwrap(), Side::Here(here.to_owned()), "{here}");
        }
        assert_eq!(side("-").unwrap(), Side::Stream);
        assert!(side("web:").is_err() && side("").is_err());
    }

    #[test]
    fn a_guests_path_is_a_directory_and_a_name() {
        for (path, dir, name) in [
            ("/a", "/", "a"),
            ("/a/b/", "/a", "b"),
            ("a", ".", "a"),
            ("a/b", "a", "b"),
            ("/a//b", "/a/", "b"),
        ] {
            assert_eq!(split(path), (dir.to_owned(), PathBuf::from(name)), "{path}");
        }
        assert!(is_content(".") && is_content("a/.") && !is_content("a.") && !is_content("a/.."));
    }
}
