//! `skiff clone`.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use serde::Serialize;
use vmm::snapshot::Id;
use vmm::snapshot::manifest::Manifest;
use vmm::spec::PortForward;

use super::point::Point;
use super::snapshot::{create, family};
use super::{Verb, print, print_json};
use crate::copy;
use crate::exit::{self, SUCCESS, Usage};
use crate::flags::{self, Completes, Count, Example, Flag, Operand, Takes, utf8};
use crate::launch::{Copy, Launch, Which};
use crate::logging::Logging;
use crate::progress::Bar;
use crate::store::{Store, names, time};

/// The most at once: each is a process.
const MOST: u32 = 1000;

pub const VERB: Verb = Verb {
    name: "clone",
    about: "Start VMs from a snapshot, or from a VM as it is now",
    long: "Start VMs from a snapshot: each goes on from that instant on its own, in the background, and shares memory and disks \
           with the others until it writes. Of a VM that runs and no snapshot, one is taken now; of a VM that has stopped, it is the \
           snapshot that it is on.\n\n\
           A clone has the snapshot's processors, memory and devices, a name, MAC addresses and a vsock socket of its own, and a new \
           generation ID by which its guest knows that it is another. It has none of the published ports. It stays when it stops. \
           Prints the names.",
    after: || EXAMPLES.to_owned(),
    flags: || flags::describe(FLAGS),
    operands: &[POINT],
    run: clone,
};

const EXAMPLES: &str = "\
Examples:
  skiff clone web
  skiff clone web@s1 --name staging -p 8081:80
  skiff clone web@s1 -n 10";

const POINT: Operand = Operand {
    name: "VM[@SNAPSHOT]",
    count: Count::One,
    completes: Completes::VmsAndPoints,
    help: "The VM, and which of its snapshots [default: now]",
};

#[derive(Default)]
struct Asked {
    name: Option<String>,
    count: Option<u32>,
    ports: Vec<PortForward>,
    quiet: bool,
    json: bool,
}

const FLAGS: &[Flag<Asked>] = &[
    Flag {
        name: "name",
        short: None,
        takes: Takes::Text("NAME"),
        help: "What the clone is called, or with -n how the names begin [default: VM-1, VM-2, …]",
        long: "",
        example: Example { args: &["--name", "staging"], toml: "" },
        apply: |asked, value| {
            let name = utf8(value)?;
            names::check(name)?;
            asked.name = Some(name.to_owned());
            Ok(())
        },
    },
    Flag {
        name: "count",
        short: Some('n'),
        takes: Takes::Text("N"),
        help: "How many [default: 1]",
        long: "",
        example: Example { args: &["-n", "10"], toml: "" },
        apply: |asked, value| {
            let text = utf8(value)?;
            let count = text.parse().ok().filter(|count| (1..=MOST).contains(count));
            asked.count = Some(count.with_context(|| format!("'{text}' is no number from 1 to {MOST}"))?);
            Ok(())
        },
    },
    Flag {
        name: "publish",
        short: Some('p'),
        takes: Takes::Texts("[ADDRESS:]HOST:GUEST[/udp]"),
        help: "Let a port of the host lead into the clone, as with skiff run",
        long: "",
        example: Example { args: &["-p", "8081:80"], toml: "" },
        apply: |asked, value| {
            asked.ports.push(utf8(value)?.parse()?);
            Ok(())
        },
    },
    Flag::quiet("Print the names, and nothing of what was done for them", |asked, _| {
        asked.quiet = true;
        Ok(())
    }),
    Flag::json("Print a JSON array of objects", |asked, _| {
        asked.json = true;
        Ok(())
    }),
];

/// A clone as programs see it. The keys stay what they are.
#[derive(Serialize)]
struct Cloned<'a> {
    name: String,
    snapshot: &'a str,
    snapshot_id: Id,
}

fn clone(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    let count = asked.count.unwrap_or(1);
    if count > 1 && !asked.ports.is_empty() {
        return Err(
            Usage("a port of the host leads to one VM only: leave out --publish or -n".to_owned()).into()
        );
    }
    let point: Point = POINT.one(matches).parse()?;
    let store = Store::open()?;
    // Nothing is to be taken for a clone that cannot be.
    let names = choose(&store, asked.name.as_deref(), &point.vm, count)?;
    let (manifest, note) = origin(&store, &point)?;
    let spec = copy::spec_of(&manifest)?;
    if !asked.quiet {
        let left_out = if asked.ports.is_empty() { copy::left_out(&spec) } else { Vec::new() };
        for note in note.into_iter().chain(left_out) {
            crate::terminal::note(&format!("skiff: {note}"));
        }
    }
    check(&store, &manifest)?;
    let image = store.image_of(&spec);
    let launches = names.into_iter().map(|name| {
        let copy = Copy { from: manifest.id, ports: asked.ports.clone(), or_boot: false };
        let which = Which::New {
            name: Some(name),
            spec: Box::new(spec.clone()),
            copy: Some(copy),
            image: image.clone(),
            remove: false,
            has_agent: false,
            ends_with_owner: false,
        };
        let logging = Logging { verbose: 0, file: None, guest_on_stdout: false, detached: true };
        Launch { store: store.clone(), which, foreground: false, logging }.fork()
    });
    // All are on their way before the first is waited for.
    let launched: Vec<_> = launches.collect();
    let started: Vec<Result<String>> =
        launched.into_iter().map(|launched| launched.and_then(|mut launched| launched.started())).collect();
    store.sweep_behind();
    report(&manifest, started, asked.json)
}

/// Print the names, and every error. Fails if there was one.
fn report(manifest: &Manifest, started: Vec<Result<String>>, json: bool) -> Result<u8> {
    let (mut names, mut code) = (Vec::new(), SUCCESS);
    for result in started {
        match result {
            Ok(name) => names.push(name),
            Err(error) => {
                exit::say(&error);
                code = exit::FAILURE;
            }
        }
    }
    if json {
        let cloned = |name| Cloned { name, snapshot: &manifest.name, snapshot_id: manifest.id };
        let all: Vec<Cloned<'_>> = names.into_iter().map(cloned).collect();
        print_json(&all)?;
    } else {
        print(names.iter().map(|name| format!("{name}\n")).collect::<String>())?;
    }
    Ok(code)
}

/// The snapshot that is meant by `point`, taken now if there is none; and what its user should know.
pub fn origin(store: &Store, point: &Point) -> Result<(Manifest, Option<String>)> {
    let vm = &point.vm;
    let look = store.get(vm)?;
    if let Some(name) = &point.snapshot {
        return Ok((family(store, vm)?.find(name)?.clone(), None));
    }
    if look.is_live() {
        let taken = create::take(store, vm, None, "taken for clones")?;
        let manifest = store.snapshots().get(taken.id)?;
        return Ok((manifest, Some(format!("{vm} runs: its snapshot {} was taken for this", taken.name))));
    }
    let family = family(store, vm)?;
    let current = family.current();
    let at = family.own.iter().chain(&family.origins).find(|manifest| Some(manifest.id) == current);
    let Some(manifest) = at.or(family.newest()) else {
        bail!("{vm} does not run and has no snapshot: start it with skiff start {vm}, then clone it");
    };
    let age = time::since(manifest.created_ms);
    Ok((
        manifest.clone(),
        Some(format!("{vm} does not run: this is its snapshot {}, of {age} ago", manifest.name)),
    ))
}

/// Check all that the snapshot needs once: what many VMs then start from.
pub fn check(store: &Store, manifest: &Manifest) -> Result<()> {
    let snapshots = store.snapshots();
    let mut bar = Bar::new(format!("checking snapshot {}", manifest.name));
    let _pin = snapshots.pin()?;
    snapshots.verify(manifest.id, &mut |done, total| bar.show(done, total))?;
    Ok(())
}

/// Names for `count` clones of `vm`.
fn choose(store: &Store, asked: Option<&str>, vm: &str, count: u32) -> Result<Vec<String>> {
    let taken = store.entries()?.iter().map(|entry| entry.name().to_owned()).collect();
    let names = match (asked, count) {
        (Some(name), 1) => {
            store.check_free(name)?;
            vec![name.to_owned()]
        }
        (asked, count) => numbered(asked.unwrap_or(vm), count, &taken),
    };
    for name in &names {
        names::check(name)?;
    }
    Ok(names)
}

/// `start-1`, `start-2`, … as far as nobody has them.
fn numbered(start: &str, count: u32, taken: &BTreeSet<String>) -> Vec<String> {
    let names = (1_u64..).map(|number| format!("{start}-{number}"));
    names.filter(|name| !taken.contains(name)).take(usize::try_from(count).unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_get_the_first_numbers_that_are_free() {
        let taken = ["web-2", "web-3", "web"].map(str::to_owned).into();
        assert_eq!(numbered("web", 3, &taken), ["web-1", "web-4", "web-5"]);
        assert_eq!(numbered("a", 1, &taken), ["a-1"]);
    }
}
