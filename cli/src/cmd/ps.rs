//! `skiff ps` and `skiff inspect`: what VMs there are, and what they are doing.

use std::ffi::OsStr;

use anyhow::{Context, Result};
use clap::ArgMatches;
use serde::Serialize;
use vmm::agent::Agent;
use vmm::snapshot::Id;
use vmm::snapshot::manifest::Manifest;
use vmm::spec::VmSpec;

use super::many::{self, VMS};
use super::table::table;
use super::{Verb, print_json};
use crate::exit::SUCCESS;
use crate::flags::{self, Example, Flag, Takes};
use crate::store::entry::{CONSOLE_LOG, Look, Status, VM_LOG};
use crate::store::state::End;
use crate::store::{Store, time};

/// `skiff ps`.
pub const PS: Verb = Verb {
    name: "ps",
    about: "List VMs",
    long: "List the VMs that run; with -a, those that have stopped, too.",
    after: String::new,
    flags: || flags::describe(PS_FLAGS),
    operands: &[],
    run: ps,
};

/// `skiff inspect`.
pub const INSPECT: Verb = Verb {
    name: "inspect",
    about: "Show all that is known of VMs",
    long: "Show all that is known of VMs. Without --json it is the spec as skiff run --config takes it, with the rest as comments.",
    after: String::new,
    flags: || flags::describe(INSPECT_FLAGS),
    operands: &[VMS],
    run: inspect,
};

#[derive(Default)]
struct Asked {
    all: bool,
    quiet: bool,
    json: bool,
}

const PS_FLAGS: &[Flag<Asked>] = &[ALL, QUIET, JSON];
const INSPECT_FLAGS: &[Flag<Asked>] = &[JSON];

const ALL: Flag<Asked> = Flag {
    name: "all",
    short: Some('a'),
    takes: Takes::Nothing,
    help: "Those that do not run, too",
    long: "",
    example: Example { args: &["-a"], toml: "" },
    apply: |asked, _: &OsStr| {
        asked.all = true;
        Ok(())
    },
};

const QUIET: Flag<Asked> = Flag::quiet("Print names only", |asked, _| {
    asked.quiet = true;
    Ok(())
});

const JSON: Flag<Asked> = Flag::json("Print a JSON array of objects", |asked, _| {
    asked.json = true;
    Ok(())
});

/// A VM as programs see it. The keys stay what they are.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    /// See [`Status::word`].
    status: &'static str,
    /// The image that it is of, as it was called when the VM was made.
    image: Option<&'a str>,
    image_id: Option<String>,
    /// Whether the agent in its guest takes requests.
    ready: bool,
    pid: Option<i32>,
    cpus: Option<u8>,
    /// In bytes.
    memory: Option<u64>,
    ports: Vec<String>,
    created: Option<String>,
    started: Option<String>,
    finished: Option<String>,
    exit_code: Option<u8>,
    /// What went wrong, if something did.
    error: Option<String>,
    remove_at_end: Option<bool>,
}

/// The same with everything else.
#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    shown: Shown<'a>,
    agent: Option<&'a Agent>,
    directory: String,
    console_log: String,
    vm_log: String,
    last_lines: Vec<String>,
    #[serde(flatten)]
    place: &'a Place,
    spec: Option<&'a VmSpec>,
}

/// Where a VM is among snapshots and layers.
#[derive(Serialize, Default)]
struct Place {
    /// The snapshot that it is on.
    snapshot: Option<String>,
    snapshot_id: Option<Id>,
    /// How many snapshots are its own.
    snapshots: usize,
    /// The top layer of each disk.
    layers: Vec<Option<String>>,
}

impl Place {
    fn of(store: &Store, look: &Look) -> Result<Self> {
        let family = store.family(look)?;
        let current = family.current();
        let called = |manifest: &&Manifest| Some(manifest.id) == current;
        let own = family.own.iter().find(called).map(|own| own.name.clone());
        let origin = || Some(format!("another VM's {}", family.origins.iter().find(called)?.name));
        let disks = family.record.as_ref().map(|record| record.disks.as_slice()).unwrap_or_default();
        let layer = |layer: &Option<Id>| Some(store.places().layer((*layer)?).display().to_string());
        Ok(Self {
            snapshot: own.or_else(origin),
            snapshot_id: current,
            snapshots: family.own.len(),
            layers: disks.iter().map(layer).collect(),
        })
    }
}

impl<'a> Shown<'a> {
    fn new(look: &'a Look) -> Self {
        let status = look.status();
        let (state, spec) = (look.state.as_ref(), look.spec.as_ref());
        let end = state.and_then(|state| state.end.as_ref());
        let error = match (&status, end) {
            (Status::Broken(reason), _) => Some(reason.clone()),
            (_, Some(End::Failed { error })) => Some(error.clone()),
            _ => None,
        };
        Self {
            name: look.entry.name(),
            status: status.word(),
            image: image(look),
            image_id: state.and_then(|state| Some(state.image.as_ref()?.id.to_string())),
            ready: look.is_ready(),
            pid: pid(look),
            cpus: spec.map(|spec| spec.cpus),
            memory: spec.map(|spec| spec.memory.size.0),
            ports: spec.map(ports).unwrap_or_default(),
            created: state.map(|state| time::rfc3339(state.created)),
            started: state.map(|state| time::rfc3339(state.started)),
            finished: state.and_then(|state| state.finished).map(time::rfc3339),
            exit_code: end.map(End::code),
            error,
            remove_at_end: state.map(|state| state.remove),
        }
    }
}

fn pid(look: &Look) -> Option<i32> {
    Some(look.holder?.pid?.as_raw_nonzero().get())
}

fn image(look: &Look) -> Option<&str> {
    Some(&look.state.as_ref()?.image.as_ref()?.name)
}

fn ports(spec: &VmSpec) -> Vec<String> {
    spec.ports.iter().map(ToString::to_string).collect()
}

fn ps(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(PS_FLAGS, matches, &mut asked)?;
    let mut looks = Store::open()?.all()?;
    looks.retain(|look| asked.all || look.is_live());
    if asked.quiet {
        let names: String = looks.iter().map(|look| format!("{}\n", look.entry.name())).collect();
        return super::print(names);
    }
    if asked.json {
        return print_json(&looks.iter().map(Shown::new).collect::<Vec<_>>());
    }
    super::print(people(&looks))
}

fn people(looks: &[Look]) -> String {
    let with_ports = looks.iter().any(|look| look.spec.as_ref().is_some_and(|spec| !spec.ports.is_empty()));
    let with_images = looks.iter().any(|look| image(look).is_some());
    let mut header = vec!["NAME", "STATUS", "CPUS", "MEMORY", "PID"];
    header.extend(with_images.then_some("IMAGE"));
    header.extend(with_ports.then_some("PORTS"));
    let row = |look: &Look| {
        let spec = look.spec.as_ref();
        let mut row = vec![
            look.entry.name().to_owned(),
            status(look),
            spec.map(|spec| spec.cpus.to_string()).unwrap_or_default(),
            spec.map(|spec| spec.memory.size.to_string()).unwrap_or_default(),
            pid(look).map(|pid| pid.to_string()).unwrap_or_default(),
        ];
        row.extend(with_images.then(|| image(look).unwrap_or_default().to_owned()));
        row.extend(with_ports.then(|| spec.map(ports).unwrap_or_default().join(", ")));
        row
    };
    table(&header, &looks.iter().map(row).collect::<Vec<_>>())
}

/// What a VM is doing, or how it ended, and since when.
fn status(look: &Look) -> String {
    let state = look.state.as_ref();
    let since = |then: Option<u64>| then.map(|then| format!(" {}", time::since(then))).unwrap_or_default();
    let ago = since(state.and_then(|state| state.finished));
    match look.status() {
        Status::Starting => "Starting".to_owned(),
        Status::Running => format!("Running{}", since(state.map(|state| state.started))),
        Status::Paused => "Paused".to_owned(),
        Status::Stopping => "Stopping".to_owned(),
        Status::Broken(reason) => format!("Broken ({reason})"),
        Status::Ended(End::HostRebooted) => "Lost (host rebooted)".to_owned(),
        Status::Ended(End::Crashed) => format!("Killed (crashed){ago} ago"),
        Status::Ended(end) => {
            let word = match end {
                End::PoweredOff => "Stopped",
                End::Finished { .. } => "Finished",
                End::Panicked { .. } => "Panicked",
                End::Failed { .. } => "Failed",
                _ => "Killed",
            };
            format!("{word} ({}){ago} ago", end.code())
        }
    }
}

fn inspect(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(INSPECT_FLAGS, matches, &mut asked)?;
    let store = Store::open()?;
    let look = |name: &String| {
        let look = store.get(name)?;
        // One whose record is damaged is shown all the same.
        let place = Place::of(&store, &look).inspect_err(crate::exit::say).unwrap_or_default();
        Ok((look, place))
    };
    let results: Vec<Result<(Look, Place)>> = VMS.given(matches).iter().map(look).collect();
    if !asked.json {
        let described = |result: Result<(Look, Place)>| {
            let (look, place) = result?;
            described(&look, &place)
        };
        return many::tell(results.into_iter().map(described).collect());
    }
    let (mut looks, mut code) = (Vec::new(), SUCCESS);
    for result in results {
        match result {
            Ok(look) => looks.push(look),
            Err(error) => {
                crate::exit::say(&error);
                code = crate::exit::FAILURE;
            }
        }
    }
    print_json(&looks.iter().map(|(look, place)| whole(look, place)).collect::<Vec<_>>())?;
    Ok(code)
}

fn whole<'a>(look: &'a Look, place: &'a Place) -> Whole<'a> {
    let file = |name| look.entry.file(name).display().to_string();
    let last_lines = match look.state.as_ref().and_then(|state| state.end.as_ref()) {
        Some(End::Panicked { last_lines }) => last_lines.clone(),
        _ => Vec::new(),
    };
    Whole {
        shown: Shown::new(look),
        agent: agent(look),
        directory: look.entry.dir().display().to_string(),
        console_log: file(CONSOLE_LOG),
        vm_log: file(VM_LOG),
        last_lines,
        place,
        spec: look.spec.as_ref(),
    }
}

/// The agent that takes requests in its guest.
fn agent(look: &Look) -> Option<&Agent> {
    look.state.as_ref()?.agent.as_ref().filter(|_| look.is_ready())
}

/// For people, and for `skiff run --config`.
fn described(look: &Look, place: &Place) -> Result<String> {
    let shown = Shown::new(look);
    let mut text = format!("# {}: {}\n", shown.name, status(look));
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!("# {name}: {}\n", value.replace('\n', "\n#   ")));
        }
    };
    line("pid", shown.pid.map(|pid| pid.to_string()));
    line("agent", agent(look).map(|agent| format!("ready, of skiff {}", agent.version)));
    line("error", shown.error);
    line("image", shown.image.map(str::to_owned));
    line("image id", shown.image_id);
    line("created", shown.created);
    line("started", shown.started);
    line("finished", shown.finished);
    line("directory", Some(look.entry.dir().display().to_string()));
    line("snapshot", place.snapshot.clone());
    for (disk, layer) in place.layers.iter().enumerate() {
        line(&format!("top layer of disk{disk}"), layer.clone());
    }
    if let Some(spec) = &look.spec {
        text.push_str(&toml::to_string(spec).context("the spec cannot be written as TOML")?);
    }
    Ok(text)
}
