//! `skiff run`: boot a VM in the foreground, with the terminal as its console.

use anyhow::{Context, Error, Result, bail};
use clap::ArgMatches;
use images::manifest::Agent;
use images::store::{Store as Images, StoreError};
use vmm::spec::{Stream, VmSpec};

use self::asked::Asked;
use self::command::Said;
use self::seed::SeedAsked;
use super::point::Point;
use super::{Verb, clone};
use crate::copy;
use crate::exec::Wish;
use crate::exit::Usage;
use crate::flags::{Completes, Count, Operand};
use crate::launch::{Copy, Launch, Which};
use crate::logging::Logging;
use crate::store::Store;
use crate::store::images::OfImage;
use crate::{flags, front, guest};

mod asked;
mod command;
mod foresee;
pub mod image;
mod net;
mod options;
mod seed;
mod template;
#[cfg(test)]
mod tests;
pub mod volume;

pub const VERB: Verb = Verb {
    name: "run",
    about: "Boot a VM and give it this terminal",
    long: "Boot a VM and give it this terminal. It runs in the foreground: the guest's poweroff ends it, and so \
           does Ctrl-] q. A guest's reboot boots it again in place.\n\n\
           The VM is a process of its own. It outlives this terminal if that is closed, and with Ctrl-] d; with -d \
           it never has it. With a CMD, its console goes to its log, and the terminal is that command's, which runs as soon as \
           the guest is ready; its exit code is this program's, and the VM ends with it. With -d and a CMD, that runs in the background, and the \
           guest switches itself off after it. An image of a container has a CMD of its own.\n\n\
           A VM with a name of its own or -d stays when it stops, and skiff start starts it \
           again; any other is thrown away at its end.",
    after: || format!("{EXAMPLES}\n\n{}", crate::exit::HELP),
    flags: || flags::describe(options::FLAGS),
    operands: &[IMAGE, COMMAND],
    run,
};

const IMAGE: Operand = Operand {
    name: "IMAGE",
    count: Count::Maybe,
    completes: Completes::ImagesToBe,
    help: "The image to run, by a name or its ID; without one, there is a --kernel",
};

const COMMAND: Operand = Operand {
    name: "CMD",
    count: Count::MaybeRest,
    completes: Completes::Nothing,
    help: "A command to run in the VM, with its arguments",
};

const EXAMPLES: &str = "\
Examples:
  skiff run debian:12
  skiff run debian:12 uname -a
  skiff run -it -e LANG=C debian:12 bash
  skiff run -it --rm --entrypoint sh web:1
  skiff run -d --name web --memory 2G -p 8080:80 web:1
  skiff run --kernel /boot/vmlinuz-6.1.0-28-cloud-amd64 --initrd initrd.img
  skiff run --kernel vmlinuz --disk path=root.img --cmdline 'console=ttyS0 root=/dev/vda1'
  skiff run --kernel vmlinuz --initrd initrd.img --console stdio --serial file=boot.log
  skiff run --config vm.toml --memory 2G
  skiff run -d --name web --config web.toml
  skiff run --kernel vmlinuz --cpus 4 --dry-run > vm.toml
  skiff run --from web@s1
  skiff run --from web@s1 make test

Keys, when the guest has a terminal:
  Ctrl-] q       end the VM
  Ctrl-] d       detach: leave it running
  Ctrl-] p       press its power button
  Ctrl-] Ctrl-]  type Ctrl-]";

fn run(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(options::FLAGS, matches, &mut asked)?;
    (asked.image, asked.wish.argv) = (IMAGE.maybe(matches), COMMAND.all(matches));
    if asked.from.is_some() {
        // The snapshot says what the VM is: all words are the command's.
        asked.wish.argv.splice(0..0, asked.image.take());
    }
    if let Some(path) = asked.config.clone() {
        asked = asked.over(Asked::from_file(&path)?);
    }
    let dry_run = asked.dry_run == Some(true);
    let said = Said {
        words: std::mem::take(&mut asked.wish),
        entrypoint: asked.entrypoint.take(),
        from: asked.from.is_some(),
        detach: asked.detach == Some(true),
    };
    let (verbose, file) = (asked.verbose.unwrap_or(0), asked.log_file.take());
    let (name, detach, remove) = (asked.name.take(), asked.detach == Some(true), asked.rm == Some(true));
    if asked.keep && remove {
        return Err(Usage("--keep and --rm exclude each other: choose one".to_owned()).into());
    }
    let (stays, store) = (name.is_some() || detach || asked.keep, Store::open()?);
    if asked.image.is_some() && !said.from {
        foresee::foresee(&asked, &said, &store, name.as_deref(), dry_run)?;
    }
    // It keeps what it has held until the VM's spec names it, which is before this returns.
    let images = store.images();
    let What { spec, copy, of, has_agent, agentless } =
        what(&store, &images, asked, name.as_deref(), stays && !remove, dry_run)?;
    if dry_run {
        return print(&spec);
    }
    let manifest = of.as_ref().and_then(|of| images.get(&of.id).ok());
    let wish = command::wish(said, manifest.as_ref())?;
    if let Some(image) = agentless.filter(|_| wish.is_some() || spec.has_mounts()) {
        let wants = if wish.is_some() { "runs a command" } else { "mounts folders" };
        bail!("{}", guest::no_agent_in(&image, wants));
    }
    // Whoever asks for a command says that there is an agent to run it.
    let has_agent = has_agent || wish.is_some();
    let guest_on_stdout = wish.is_none() && (spec.serial == Stream::Stdio || spec.console == Stream::Stdio);
    // On a console a boot is what there is to see: a system that has booted says nothing.
    let copy = copy.filter(|copy| !(copy.or_boot && guest_on_stdout && !detach));
    // Nobody has asked for it to stay.
    let throw_away = !stays;
    let which = Which::New {
        name,
        spec: Box::new(spec),
        remove: remove || throw_away,
        has_agent,
        // Of a front end that is killed nobody is left who would end it.
        ends_with_owner: remove || throw_away,
        copy,
        image: of,
    };
    let logging = Logging { verbose, file, guest_on_stdout, detached: detach };
    start(Launch { store, which, foreground: !detach, logging }, wish)
}

/// What is to be run.
struct What {
    spec: VmSpec,
    copy: Option<Copy>,
    /// The image that it is of.
    of: Option<OfImage>,
    has_agent: bool,
    /// What the image is called, if it has no agent and nobody says by --vsock that its VM has one all the same.
    agentless: Option<String>,
}

/// A snapshot's VM, an image's, or one that is all said; its disks have layers if it `stays`.
fn what(
    store: &Store,
    images: &Images,
    mut asked: Asked,
    name: Option<&str>,
    stays: bool,
    dry_run: bool,
) -> Result<What> {
    volume::check(&asked.volume)?;
    let (mut of, mut has_agent, mut agentless) = (None, false, None);
    // A file of the store is made for it, which a dry run does not.
    let seed =
        if dry_run || asked.from.is_some() { SeedAsked::default() } else { SeedAsked::take(&mut asked) };
    let (spec, copy) = match (&asked.from, asked.image.take()) {
        (Some(point), _) => from_snapshot(store, &asked, point, name, dry_run)?,
        (None, _) if asked.keep => {
            return Err(Usage("--keep goes with --from: give the VM a --name".to_owned()).into());
        }
        (None, Some(text)) => {
            let own_kernel = asked.kernel.is_some();
            let found = if dry_run { image::there(images, &text) } else { image::find(images, &text) };
            let image = found.map_err(|error| not_a_command(error, &text, own_kernel))?;
            of = Some(OfImage { name: image::shown(&image, &text), id: image.id });
            has_agent = image.manifest.agent != Agent::None;
            agentless = (!has_agent && asked.vsock.is_none()).then(|| image::shown(&image, &text));
            let verbose = asked.verbose.is_some();
            let asked = image::apply(asked, images, &image)?;
            image::tell_published(&image, &asked);
            let spec = with_layers(asked.resolve()?, stays);
            let spec = seed.add(spec, images, name)?;
            let warm = match dry_run {
                true => None,
                false => image::warm(store, images, &image, &spec, verbose)?,
            };
            let ports = spec.ports.clone();
            (spec, warm.map(|warm| Copy { from: warm.id, ports, or_boot: true }))
        }
        (None, None) => (seed.add(with_layers(asked.resolve()?, stays), images, name)?, None),
    };
    let of = of.or_else(|| store.image_of(&spec));
    // Whoever wants a folder mounted says that there is an agent.
    let has_agent = has_agent || spec.has_mounts();
    Ok(What { spec, copy, of, has_agent, agentless })
}

/// Whoever gives a kernel may have meant by the first word no image, but the command.
fn not_a_command(error: Error, text: &str, own_kernel: bool) -> Error {
    match error.downcast_ref() {
        Some(StoreError::Unknown { .. }) if own_kernel => error.context(format!(
            "with --kernel, too, the first word is an image, whose disk the VM has; a command in a VM without one is run in two steps: skiff run -d \
             --name VM --vsock auto --kernel …, then skiff exec VM {text} …"
        )),
        _ => error,
    }
}

/// Start it, with the terminal, a command or nobody before it.
fn start(launch: Launch, wish: Option<Wish>) -> Result<u8> {
    let Which::New { spec, has_agent, .. } = &launch.which else {
        bail!("the VM is not new: this is a defect of skiff")
    };
    let (has_agent, spec) = (*has_agent, spec.clone());
    match wish {
        Some(wish) => command::run(launch, wish),
        None if launch.foreground => front::own(launch, &spec),
        None => {
            let (store, name) = (launch.store.clone(), launch.fork()?.started()?);
            if has_agent {
                guest::wait_ready(&store, &name, Some(guest::BOOT))?;
            }
            super::print(format!("{name}\n"))
        }
    }
}

/// `spec` with it said of each disk whether it has layers: those of a VM that `stays` do, so that it can have snapshots.
fn with_layers(mut spec: VmSpec, stays: bool) -> VmSpec {
    for disk in spec.disks.iter_mut().filter(|disk| !disk.readonly) {
        disk.layers.get_or_insert(stays || disk.size.is_some());
    }
    spec
}

/// The spec of a VM that starts from a snapshot, and what makes it a copy.
fn from_snapshot(
    store: &Store,
    asked: &Asked,
    point: &Point,
    name: Option<&str>,
    dry_run: bool,
) -> Result<(VmSpec, Option<Copy>)> {
    let against = asked.against_from();
    if !against.is_empty() {
        let message = format!("the snapshot says what the VM is: leave out {}", against.join(", "));
        return Err(Usage(message).into());
    }
    if dry_run && point.snapshot.is_none() {
        return Err(Usage(format!("--dry-run takes no snapshot: name one, as in {}@s1", point.vm)).into());
    }
    if let Some(name) = name.filter(|_| !dry_run) {
        store.check_free(name)?;
    }
    let (manifest, note) = clone::origin(store, point)?;
    let mut spec = copy::spec_of(&manifest)?;
    volume::give(&mut spec, &asked.volume)?;
    if dry_run {
        return Ok((copy::adapt(spec, name.unwrap_or("NAME"), asked.publish.clone()), None));
    }
    let left_out = if asked.publish.is_empty() { copy::left_out(&spec) } else { Vec::new() };
    for note in note.into_iter().chain(left_out) {
        crate::terminal::note(&format!("skiff: {note}"));
    }
    clone::check(store, &manifest)?;
    Ok((spec, Some(Copy { from: manifest.id, ports: asked.publish.clone(), or_boot: false })))
}

fn print(spec: &VmSpec) -> Result<u8> {
    super::print(&toml::to_string(spec).context("the spec cannot be written as TOML")?)
}
