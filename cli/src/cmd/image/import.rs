//! `skiff image import`: an image from a file. What kind of file it is, its content says.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use images::manifest::Manifest;
use images::name::Name;
use images::progress::Progress;
use images::store::{Scratch, Store as Images};

use crate::cmd::{Verb, print};
use crate::exit::Usage;
use crate::flags::{self, Completes, Count, Example, Flag, Operand, Takes, utf8};
use crate::progress::Steps;
use crate::store::Store;

/// `skiff image import`.
pub const VERB: Verb = Verb {
    name: "import",
    about: "Make an image of a disk, a root file system or a container's image",
    long: "Make an image of a file: a disk (raw, qcow2, vmdk or vhdx), an archive of a root file system (tar, compressed or not), an OCI layout (a \
           directory, or a tar of it) or what docker save writes. Its content tells which. - is standard input. The name is by default that of \
           the file. Prints the names.",
    after: String::new,
    flags: || flags::describe(FLAGS),
    operands: &[FILE, NAME],
    run: import,
};

const FILE: Operand = Operand {
    name: "FILE",
    count: Count::One,
    completes: Completes::Files,
    help: "The file or directory; - is standard input",
};

const NAME: Operand = Operand {
    name: "NAME",
    count: Count::Maybe,
    completes: Completes::Nothing,
    help: "What to call the image, such as web:1 [default: the file's name]",
};

/// What was asked for beside the file.
#[derive(Default)]
pub struct Asked {
    /// The image whose kernel it is to have.
    pub kernel_from: Option<String>,
    /// Leave the agent out of a disk.
    pub no_agent: bool,
    /// Which of several images in an archive or layout.
    pub image: Option<String>,
    /// What else to call it.
    names: Vec<Name>,
    quiet: bool,
}

const FLAGS: &[Flag<Asked>] = &[
    Flag {
        name: "kernel-from",
        short: None,
        takes: Takes::Text("IMAGE"),
        help: "Take the kernel of this image for a guest that has none",
        long: "By default it is that of Debian's cloud images, which is fetched once.",
        example: Example { args: &["--kernel-from", "debian:12"], toml: "" },
        apply: |asked, value| {
            asked.kernel_from = Some(utf8(value)?.to_owned());
            Ok(())
        },
    },
    Flag {
        name: "no-agent",
        short: None,
        takes: Takes::Nothing,
        help: "Leave a disk as it is: without the agent, so that skiff exec and cp do not work",
        long: "",
        example: Example { args: &["--no-agent"], toml: "" },
        apply: |asked, _| {
            asked.no_agent = true;
            Ok(())
        },
    },
    Flag {
        name: "image",
        short: None,
        takes: Takes::Text("NAME"),
        help: "Take the image of this name or tag from a layout or archive that has several",
        long: "",
        example: Example { args: &["--image", "app:1"], toml: "" },
        apply: |asked, value| {
            asked.image = Some(utf8(value)?.to_owned());
            Ok(())
        },
    },
    Flag {
        name: "tag",
        short: Some('t'),
        takes: Takes::Texts("NAME"),
        help: "Call the image so, as NAME does; it can have several names",
        long: "",
        example: Example { args: &["-t", "web:1"], toml: "" },
        apply: |asked, value| {
            asked.names.push(name(utf8(value)?)?);
            Ok(())
        },
    },
    Flag::quiet("Print the name, and nothing of what is done for it", |asked, _| {
        asked.quiet = true;
        Ok(())
    }),
];

/// One kind of file that becomes an image.
pub struct Importer {
    /// What it is, for people.
    pub name: &'static str,
    /// The flags that mean something to it alone.
    pub flags: &'static [&'static str],
    /// Whether this is one.
    pub recognises: fn(&Path) -> Result<bool>,
    /// Put its files into the store. The caller keeps the manifest and gives it its name.
    pub import: fn(&Images, &Path, &Asked, &mut dyn Progress) -> Result<Manifest>,
}

/// Of all kinds, in the order in which they are asked: archives before disks, since any file can be a raw disk.
const IMPORTERS: &[Importer] = &[super::container::IMPORTER, super::rootfs::IMPORTER, super::disk::IMPORTER];

fn import(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    let images = Store::open()?.images();
    // Before anything is unpacked.
    asked.kernel_from.as_deref().map(|image| images.hold(image)).transpose()?;
    let mut steps = Steps::new(asked.quiet);
    let given = FILE.one(matches);
    let mut names: Vec<Name> = NAME.maybe(matches).as_deref().map(name).transpose()?.into_iter().collect();
    names.append(&mut asked.names);
    if names.is_empty() {
        names.push(name_of_file(&given)?);
    }
    let (path, _scratch) = match given.as_str() {
        "-" => from_stdin(&images, &mut steps)?,
        given => (std::path::absolute(OsStr::new(given)).context("cannot tell the current directory")?, None),
    };
    for importer in IMPORTERS {
        if (importer.recognises)(&path)? {
            let said = [("no-agent", asked.no_agent), ("image", asked.image.is_some())];
            if let Some((flag, _)) = said.iter().find(|(flag, said)| *said && !importer.flags.contains(flag))
            {
                return Err(
                    Usage(format!("{given} is {}: --{flag} means nothing to it", importer.name)).into()
                );
            }
            let manifest = (importer.import)(&images, &path, &asked, &mut steps)?;
            let id = images.put(&manifest)?;
            names.iter().try_for_each(|name| images.tag(name, &id))?;
            drop(steps);
            return print(names.iter().map(|name| format!("{name}\n")).collect::<String>());
        }
    }
    std::fs::metadata(&path).with_context(|| format!("cannot open {}", path.display()))?;
    bail!(
        "{given} is nothing that becomes an image: give a disk (raw, qcow2, vmdk, vhdx), a tar of a root file system, an OCI layout or what docker \
         save writes"
    )
}

/// How much of standard input is taken before it is asked whether there is room for as much again, in bytes.
const PART: u64 = 16 << 20;

/// Let what comes on standard input be a file.
fn from_stdin(images: &Images, steps: &mut Steps) -> Result<(PathBuf, Option<Scratch>)> {
    steps.step("reading standard input");
    let scratch = images.scratch()?;
    let path = scratch.path().join("stdin");
    let failed = || format!("cannot write {}", path.display());
    let mut file = std::fs::File::create(&path).with_context(failed)?;
    let (mut stdin, mut total) = (io::stdin().lock(), 0_u64);
    loop {
        let mut part = io::Read::take(&mut stdin, PART);
        let copied = io::copy(&mut part, &mut file).with_context(failed)?;
        if copied == 0 {
            return Ok((path, Some(scratch)));
        }
        total = total.saturating_add(copied);
        images.room(PART)?;
        steps.advance(total, None);
    }
}

/// A name that was given.
fn name(text: &str) -> Result<Name> {
    text.parse().map_err(|error: images::name::NameError| Usage(error.to_string()).into())
}

/// The file's name without its endings.
fn name_of_file(file: &str) -> Result<Name> {
    let path = Path::new(file);
    let mut stem = path.file_name().and_then(OsStr::to_str).unwrap_or_default().to_ascii_lowercase();
    while let Some((rest, ending)) = stem.rsplit_once('.') {
        if rest.is_empty() || !ENDINGS.contains(&ending) {
            break;
        }
        stem = rest.to_owned();
    }
    let nameless =
        || Usage(format!("say what the image of {file} is to be called: add a NAME, such as web:1"));
    Ok(stem.parse().map_err(|_| nameless())?)
}

/// Endings of files that say nothing of what is in them.
const ENDINGS: &[&str] =
    &["raw", "img", "qcow2", "vmdk", "vhdx", "tar", "oci", "tgz", "txz", "gz", "xz", "zst", "bz2", "lz4"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_the_files_unless_one_is_given() {
        for (file, name) in [
            ("/a/Web.qcow2", "web:latest"),
            ("debian-12-genericcloud-amd64.tar.xz", "debian-12-genericcloud-amd64:latest"),
            ("dir.v2/", "dir.v2:latest"),
        ] {
            assert_eq!(name_of_file(file).unwrap().to_string(), name);
        }
        for file in ["-", "My Disk.raw", "/"] {
            assert!(name_of_file(file).unwrap_err().is::<Usage>(), "{file}");
        }
        assert_eq!(name("a:1").unwrap().to_string(), "a:1");
        assert!(name("A").unwrap_err().is::<Usage>());
    }
}
