//! `skiff image export`: an image as a file for other programs.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use images::progress::Progress;
use images::store::{Image, Scratch, Store as Images};

use super::{IMAGE, container, disk, rootfs};
use crate::cmd::Verb;
use crate::exit::{SUCCESS, Usage};
use crate::flags::{self, Completes, Count, Example, Flag, Operand, Takes, utf8};
use crate::progress::Steps;
use crate::store::Store;

/// `skiff image export`.
pub const VERB: Verb = Verb {
    name: "export",
    about: "Write an image to a file",
    long: "Write an image to a file: its disk for other hypervisors, its files, or an image for container tools. Without --format the ending of FILE tells \
           which: .qcow2, .raw or .img, .vmdk, .vhdx, .tar; a name without an ending is a directory with an OCI layout. - is standard output.",
    after: String::new,
    flags: || flags::describe(FLAGS),
    operands: &[IMAGE, FILE],
    run: export,
};

const FILE: Operand = Operand {
    name: "FILE",
    count: Count::One,
    completes: Completes::Files,
    help: "The file to write, which must not be there; - is standard output",
};

/// What is written, each by its function.
pub struct Exporter {
    /// As `--format` takes it.
    pub name: &'static str,
    /// Of files' names.
    pub endings: &'static [&'static str],
    /// Writes it.
    pub export: fn(&Images, &Image, &Path, &mut dyn Progress) -> Result<()>,
}

const EXPORTERS: &[Exporter] =
    &[disk::QCOW2, disk::RAW, disk::VMDK, disk::VHDX, rootfs::TAR, container::OCI, container::DOCKER];

/// The names of [`EXPORTERS`], as a flag wants them.
const FORMATS: &[&str] = &["qcow2", "raw", "vmdk", "vhdx", "tar", "oci", "docker"];

#[derive(Default)]
struct Asked {
    format: Option<String>,
    quiet: bool,
}

const FLAGS: &[Flag<Asked>] = &[
    Flag {
        name: "format",
        short: None,
        takes: Takes::Choice("FORMAT", FORMATS),
        help: "What to write [default: by the ending of FILE]",
        long: "qcow2, raw, vmdk and vhdx are the root disk. tar has the files of its root file system. oci is an OCI layout: a directory or, if FILE \
               ends in .tar or is -, a tar of one. docker is what docker load reads. What came from a container goes out as it came, to the byte; \
               of any other image the files of the root file system become one layer, without a kernel for it. tar, oci and docker \
               take files out of ext4 alone, and leave device nodes out.",
        example: Example { args: &["--format", "qcow2"], toml: "" },
        apply: |asked, value| {
            asked.format = Some(utf8(value)?.to_owned());
            Ok(())
        },
    },
    Flag::quiet("Say nothing of what is done", |asked, _| {
        asked.quiet = true;
        Ok(())
    }),
];

fn export(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    let file = FILE.one(matches);
    let images = Store::open()?.images();
    // Formats are written in any order, so standard output gets what is whole.
    let scratch = (file == "-").then(|| to_stdout(&asked, &images)).transpose()?;
    let path: PathBuf = match &scratch {
        Some(scratch) => scratch.path().join("image.tar"),
        None => std::path::absolute(OsStr::new(&file)).context("cannot tell the current directory")?,
    };
    let image = images.hold(&IMAGE.one(matches))?;
    let ending = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    let fits = |exporter: &&Exporter| match &asked.format {
        Some(format) => exporter.name == format,
        None => exporter.endings.contains(&ending),
    };
    let Some(exporter) = EXPORTERS.iter().find(fits) else {
        bail!("what to write to {file}? Choose with --format: {}", FORMATS.join(", "));
    };
    if path.exists() {
        bail!("{file} is there already: choose another name, or remove it");
    }
    let mut steps = Steps::new(asked.quiet);
    images.verify(&image.manifest, &mut |done, total| steps.advance(done, Some(total)))?;
    (exporter.export)(&images, &image, &path, &mut steps)?;
    drop(steps);
    if scratch.is_some() {
        let mut out = io::stdout().lock();
        let whole = File::open(&path).and_then(|mut whole| io::copy(&mut whole, &mut out));
        whole.and_then(|_| out.flush()).context("cannot write to standard output")?;
    }
    Ok(SUCCESS)
}

/// A place for what standard output is to get.
fn to_stdout(asked: &Asked, images: &Images) -> Result<Scratch> {
    if asked.format.is_none() {
        bail!(Usage(format!(
            "what to write to standard output? Choose with --format: {}",
            FORMATS.join(", ")
        )));
    }
    if io::stdout().is_terminal() {
        bail!(Usage(
            "an image is not written to a terminal: name a file, or redirect standard output".to_owned()
        ));
    }
    Ok(images.scratch()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_that_can_be_chosen_can_be_written() {
        let names: Vec<&str> = EXPORTERS.iter().map(|exporter| exporter.name).collect();
        assert_eq!(names, FORMATS);
    }
}
