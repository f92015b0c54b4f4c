//! `skiff image pull`: an image from a registry.

use std::ffi::OsStr;

use anyhow::{Context, Result};
use clap::ArgMatches;
use images::digest::Digest;
use images::name::Name;
use images::registry::{self, Options, Reference, ReferenceError};
use images::store::Store as Images;

use super::container::with_machine;
use crate::cmd::{Verb, print};
use crate::exit::Usage;
use crate::flags::{self, Completes, Count, Example, Flag, Operand, Takes, utf8};
use crate::progress::Steps;
use crate::store::Store;

/// `skiff image pull`.
pub const VERB: Verb = Verb {
    name: "pull",
    about: "Fetch an image from a registry",
    long: "Fetch an image from a registry of container images, and make a VM's image of it: its layers become a disk, which gets a kernel and \
           skiff's agent as its init. Its entrypoint, command, environment, user, working directory and ports are kept. What skiff image push \
           has sent of a VM's image comes back as it was. All that comes is checked by its digest; what was interrupted is taken up again by the \
           next pull. Whoever has done docker login is known by it. Prints the name, or the ID if it gets none.",
    after: String::new,
    flags: || flags::describe(FLAGS),
    operands: &[REFERENCE],
    run: pull,
};

const REFERENCE: Operand = Operand {
    name: "REF",
    count: Count::One,
    completes: Completes::Nothing,
    help: "Where the image is: [HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]; docker.io and latest if they are left out",
};

/// What was asked for beside the place.
#[derive(Default)]
struct Asked {
    tag: Option<Name>,
    kernel_from: Option<String>,
    speech: Speech,
    quiet: bool,
}

/// How a registry is spoken to.
#[derive(Default)]
pub struct Speech {
    plain_http: bool,
    insecure: bool,
}

impl Speech {
    /// `--plain-http` was given.
    pub fn set_plain_http(&mut self) {
        self.plain_http = true;
    }

    /// `--insecure` was given.
    pub fn set_insecure(&mut self) {
        self.insecure = true;
    }

    /// For the registry's client.
    pub fn options(&self) -> Options {
        Options { plain_http: self.plain_http, insecure: self.insecure, ..Options::default() }
    }
}

const FLAGS: &[Flag<Asked>] = &[
    Flag {
        name: "tag",
        short: Some('t'),
        takes: Takes::Text("NAME"),
        help: "Call the image so [default: as REF does, without docker.io/library]",
        long: "",
        example: Example { args: &["-t", "web:1"], toml: "" },
        apply: |asked, value| {
            let name = utf8(value)?.parse();
            asked.tag = Some(name.map_err(|error: images::name::NameError| Usage(error.to_string()))?);
            Ok(())
        },
    },
    Flag {
        name: "kernel-from",
        short: None,
        takes: Takes::Text("IMAGE"),
        help: "Take the kernel of this image for a container's",
        long: "By default it is that of Debian's cloud images, which is fetched once. With it the disk is made again even if the image is there.",
        example: Example { args: &["--kernel-from", "debian:12"], toml: "" },
        apply: |asked, value| {
            asked.kernel_from = Some(utf8(value)?.to_owned());
            Ok(())
        },
    },
    plain_http(|asked, _| {
        asked.speech.set_plain_http();
        Ok(())
    }),
    insecure(|asked, _| {
        asked.speech.set_insecure();
        Ok(())
    }),
    Flag::quiet("Print the name, and nothing of what is done for it", |asked, _| {
        asked.quiet = true;
        Ok(())
    }),
];

/// `--plain-http`.
pub const fn plain_http<T>(apply: fn(&mut T, &OsStr) -> Result<()>) -> Flag<T> {
    Flag {
        name: "plain-http",
        short: None,
        takes: Takes::Nothing,
        help: "Speak HTTP without TLS with the registry",
        long: "Whoever is on the way can read and change what is sent, and the password with it. A registry of this machine is spoken to so by \
               itself if it has no TLS.",
        example: Example { args: &["--plain-http"], toml: "" },
        apply,
    }
}

/// `--insecure`.
pub const fn insecure<T>(apply: fn(&mut T, &OsStr) -> Result<()>) -> Flag<T> {
    Flag {
        name: "insecure",
        short: None,
        takes: Takes::Nothing,
        help: "Believe any certificate of the registry",
        long: "A registry whose certificate is signed by an authority of its own is better trusted by /etc/docker/certs.d/HOST:PORT/ca.crt, or by \
               SSL_CERT_FILE.",
        example: Example { args: &["--insecure"], toml: "" },
        apply,
    }
}

/// Where an image is, or a usage error.
pub fn reference(text: &str) -> Result<Reference> {
    text.parse().map_err(|error: ReferenceError| Usage(error.to_string()).into())
}

/// Fetch the image `text`, if that names a registry. Says whether it does.
pub fn by_reference(images: &Images, text: &str, steps: &mut Steps) -> Result<bool> {
    let named = |host: &str| host == "localhost" || host.contains(['.', ':']);
    if !text.split_once('/').is_some_and(|(host, _)| named(host)) {
        return Ok(false);
    }
    fetch(images, &reference(text)?, &Options::default(), None, None, steps).map(|_| true)
}

/// Fetch an image, and call it `name`, or as `reference` does.
fn fetch(
    images: &Images,
    reference: &Reference,
    options: &Options,
    kernel_from: Option<&str>,
    name: Option<Name>,
    steps: &mut Steps,
) -> Result<(Digest, Option<Name>)> {
    let id = with_machine(kernel_from, |machine| {
        registry::pull(images, reference, options, kernel_from.is_some(), machine, steps)
    });
    let id = id.with_context(|| format!("cannot pull {reference}"))?;
    let name = name.or_else(|| reference.name());
    if let Some(name) = &name {
        images.tag(name, &id)?;
    }
    Ok((id, name))
}

fn pull(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    let reference = reference(&REFERENCE.one(matches))?;
    let images = Store::open()?.images();
    let mut steps = Steps::new(asked.quiet);
    let (options, kernel_from) = (asked.speech.options(), asked.kernel_from.as_deref());
    let (id, name) = fetch(&images, &reference, &options, kernel_from, asked.tag, &mut steps)?;
    drop(steps);
    print(name.map_or_else(|| id.to_string(), |name| name.to_string()) + "\n")
}
