//! `skiff image build -f FILE`: an image as a file says.
//!
//! ```text
//!   file ─► plan (keys) ─► image known by its key? ─────────────────────────────────────────────► name it
//!                              │ no
//!                              ▼
//!   VM ◄── snapshot of the last step whose key is known, or a boot of the base
//!    │  each step: do it ─► sync ─► snapshot, remembered by the step's key
//!    ▼
//!   clean up ─► power off ─► layers above the base's disk made one ─► image ─► boot, snapshot: warm
//! ```
//! The VM lives as long as this process at most, and nothing is left of it but the steps' snapshots. A build that fails or is interrupted goes
//! on from the last step that it has done. Of two builds of the same, one waits for the other. All of it is the main thread's.

use std::path::{Path, PathBuf};

use ::agent::message::Looked;
use anyhow::{Context as _, Result, bail};
use images::file::cache::{Cache, StepResult};
use images::file::context::Context;
use images::file::plan::{self, Action, Ground, Plan, Planned};
use images::file::{At, Copy, File, FileError, What, Wrong};
use images::manifest::{Disk, Manifest, Source};
use images::name::Name;
use images::store::{Image, Store as Images};
use vmm::snapshot::Id;
use vmm::snapshot::manifest::Manifest as Snapshot;
use vmm::spec::{Memory, PortForward, VmSpec};

use self::guest::{Guest, Outcome};
use self::show::Screen;
use super::warm;
use crate::cmd::{clone, run};
use crate::copy;
use crate::exit::Usage;
use crate::flags::closest;
use crate::store::Store;
use crate::store::time::now;

pub mod guest;
pub mod show;

/// The longest file that is read, in bytes.
const LONGEST: u64 = 1 << 20;
/// What is taken out of the guest before its disk becomes an image: what is to be every VM's own, and what is free.
const CLEAN: &str = "
rm -f /var/lib/systemd/random-seed /var/lib/dbus/machine-id
if [ -s /etc/machine-id ]; then : > /etc/machine-id; fi
sync
fstrim / 2>/dev/null || true
";

/// What is asked for.
#[derive(Debug, Default)]
pub struct Asked {
    /// The file.
    pub file: PathBuf,
    /// What the image is to be called; otherwise as the file says, or as its directory.
    pub names: Vec<Name>,
    /// Do every step, whatever was done before.
    pub no_cache: bool,
    /// Show nothing but the image's ID.
    pub quiet: bool,
}

/// A build on its way.
struct Build<'a> {
    asked: &'a Asked,
    store: &'a Store,
    images: &'a Images,
    cache: Cache<'a>,
    context: Context,
    file: File,
    base: Image,
    plan: Plan,
    /// Of the VM in which the steps are done.
    spec: VmSpec,
    screen: Screen,
}

/// Build it. Says which image it is.
pub fn build(store: &Store, images: &Images, asked: &Asked) -> Result<Image> {
    let file = read(&asked.file)?;
    let names =
        if asked.names.is_empty() { vec![default_name(&file, &asked.file)?] } else { asked.names.clone() };
    let context = Context::open(&directory(&asked.file)?)?;
    context.check(&file.steps).map_err(|error| mistake(&asked.file, &error))?;
    let base = run::image::find(images, &file.base.to_string())?;
    let mut build = Build::prepare(store, images, asked, (file, context), base)?;
    let id = match build.known()? {
        Some(id) => id,
        None => build.make()?,
    };
    for name in &names {
        images.tag(name, &id)?;
    }
    let image = images.hold(&id.to_string())?;
    if build.file.warm {
        warm::keep(store, images, &image, &mut build.screen)?;
    }
    store.sweep_behind();
    Ok(image)
}

/// What the file at `path` asks for.
fn read(path: &Path) -> Result<File> {
    let failed = || format!("cannot read {}", path.display());
    let mut text = String::new();
    let opened = std::fs::File::open(path).with_context(failed)?;
    std::io::Read::read_to_string(&mut std::io::Read::take(opened, LONGEST + 1), &mut text)
        .with_context(failed)?;
    images::file::parse(&text).map_err(|error| mistake(path, &error))
}

/// A mistake in the file, with what was most likely meant.
fn mistake(path: &Path, error: &FileError) -> anyhow::Error {
    let text = match &error.wrong {
        Wrong::Key { key, known } => match closest(key, known.iter().copied()) {
            Some(close) => format!("there is no key '{key}': did you mean '{close}'?"),
            None => error.wrong.to_string(),
        },
        Wrong::Other(text) => text.clone(),
    };
    Usage(format!("{}:{}: {text}", path.display(), error.line)).into()
}

/// What the image is called if nobody says: as the file does, or as the file's directory.
fn default_name(file: &File, path: &Path) -> Result<Name> {
    if let Some(name) = &file.name {
        return Ok(name.clone());
    }
    let dir = directory(path)?;
    let name = dir.file_name().and_then(|name| name.to_str()).map(str::to_ascii_lowercase);
    let name = name.and_then(|name| name.parse().ok());
    name.ok_or_else(|| {
        let dir = dir.display();
        Usage(format!("the name of the directory {dir} is none for an image: give it one with -t NAME"))
            .into()
    })
}

/// The directory of the file at `path`, with all links followed.
fn directory(path: &Path) -> Result<PathBuf> {
    let real = std::fs::canonicalize(path).with_context(|| format!("cannot find {}", path.display()))?;
    Ok(real.parent().unwrap_or(Path::new("/")).to_owned())
}

impl<'a> Build<'a> {
    /// Everything that can be wrong before something is done.
    fn prepare(
        store: &'a Store,
        images: &'a Images,
        asked: &'a Asked,
        (file, context): (File, Context),
        base: Image,
    ) -> Result<Self> {
        let wrong = |line: usize, text: String| Usage(format!("{}:{line}: {text}", asked.file.display()));
        let disk = &base.manifest.disk;
        let size = file.size.as_ref().map_or(disk.grows_to, |size| size.value).max(disk.size);
        if let Some(At { line, value }) = file.size.as_ref().filter(|size| size.value < disk.size) {
            let (asked, least) = (Memory(*value), Memory(disk.size));
            return Err(wrong(
                *line,
                format!("{asked} is less than the disk of {} has, which is {least}", file.base),
            )
            .into());
        }
        if let Some(At { line, value }) = &file.publish {
            let bad = value.iter().find_map(|port| port.parse::<PortForward>().err());
            if let Some(error) = bad {
                return Err(wrong(*line, error.to_string()).into());
            }
        }
        let mut spec = run::image::spec(images, &base)?;
        if let Some(cpus) = file.cpus {
            spec.cpus = cpus;
        }
        if let Some(At { line, value }) = &file.memory {
            spec.memory.size = value.parse().map_err(|error| wrong(*line, format!("{error}")))?;
        }
        if let Some(disk) = spec.disks.first_mut() {
            disk.size = Some(Memory(size));
        }
        spec.ports = Vec::new();
        spec.validate().map_err(|error| wrong(1, error.to_string()))?;
        let mut screen = Screen::new(asked.quiet, file.steps.len());
        let ground = Ground { version: env!("CARGO_PKG_VERSION"), base: base.id, size };
        let plan = plan::plan(&file, &ground, &base.manifest.defaults, &context, &mut |_| {});
        let plan = plan.map_err(|error| {
            screen.fail();
            anyhow::Error::new(error).context(asked.file.display().to_string())
        })?;
        Ok(Self { asked, store, images, cache: Cache::of(images), context, file, base, plan, spec, screen })
    }

    /// The image, if it was built before.
    fn known(&mut self) -> Result<Option<images::digest::Digest>> {
        let id = self.cache.image(self.plan.image)?.filter(|_| !self.asked.no_cache);
        if id.is_some() {
            self.show_cached(self.plan.steps.len());
        }
        Ok(id)
    }

    fn show_cached(&mut self, count: usize) {
        for (at, step) in self.plan.steps.iter().take(count).enumerate() {
            self.screen.step(at.saturating_add(1), &step.title);
            self.screen.end("cached");
        }
    }

    /// Do what is to be done, and make the image.
    fn make(&mut self) -> Result<images::digest::Digest> {
        let cache = self.cache.clone();
        let screen = &mut self.screen;
        let _making =
            cache.make(self.plan.image, || screen.note("the same is being built already: waiting for it"))?;
        if let Some(id) = self.known()? {
            return Ok(id);
        }
        let (guest, done) = self.begin()?;
        for at in done..self.plan.steps.len() {
            self.step(&guest, at)?;
        }
        let id = self.finish(guest)?;
        self.cache.put_image(self.plan.image, id)?;
        Ok(id)
    }

    /// The newest step whose result is there: how many steps that spares, and the result.
    fn resume(&self) -> Result<Option<(usize, Snapshot)>> {
        if self.asked.no_cache {
            return Ok(None);
        }
        let snapshots = self.store.snapshots();
        for (at, step) in self.plan.steps.iter().enumerate().rev() {
            let result = self.cache.step(step.key)?;
            let id = result.and_then(|result| result.snapshot.parse::<Id>().ok());
            let snapshot = id.and_then(|id| snapshots.get(id).ok()).filter(|snapshot| !snapshot.removed);
            if let Some(snapshot) = snapshot {
                return Ok(Some((at.saturating_add(1), snapshot)));
            }
        }
        Ok(None)
    }

    /// A guest with as many steps done as can be had.
    fn begin(&mut self) -> Result<(Guest, usize)> {
        if let Some((done, snapshot)) = self.resume()? {
            match self.resume_from(done, &snapshot) {
                Ok(guest) => return Ok((guest, done)),
                Err(error) => {
                    self.screen.fail();
                    self.screen.note(&format!(
                        "what was built before cannot be used, so all steps are done again: {error:#}"
                    ));
                }
            }
        }
        self.screen.begin(format!("boot {}", self.file.base));
        let guest = Guest::start(self.store, &self.spec, None).inspect_err(|_| self.screen.fail())?;
        self.screen.done();
        Ok((guest, 0))
    }

    /// Go on from a step: as it was if the VM is the same, otherwise by a boot of its disk.
    fn resume_from(&mut self, done: usize, snapshot: &Snapshot) -> Result<Guest> {
        self.show_cached(done);
        let spec = copy::spec_of(snapshot)?;
        clone::check(self.store, snapshot)?;
        self.screen.begin(format!("go on from step {done}"));
        let mut guest = match warm::differs(&spec, &self.spec) {
            None => Guest::start(self.store, &spec, Some(snapshot.id)),
            Some(what) => {
                log::info!("the disk of step {done} is booted, for {what} is another");
                Err(anyhow::anyhow!("{what} is another"))
            }
        };
        if let Err(error) = &guest {
            log::info!("the disk of step {done} is booted: {error:#}");
            let layer = snapshot.disks.first().and_then(|disk| disk.layer).context("it has no disk")?;
            let mut spec = self.spec.clone();
            if let Some(disk) = spec.disks.first_mut() {
                disk.path = self.store.places().layer(layer);
            }
            guest = Guest::start(self.store, &spec, None);
        }
        let guest = guest?;
        self.screen.done();
        Ok(guest)
    }

    /// Do a step, and remember its result.
    fn step(&mut self, guest: &Guest, at: usize) -> Result<()> {
        let (number, total) = (at.saturating_add(1), self.plan.steps.len());
        let Some(step) = self.plan.steps.get(at) else { return Ok(()) };
        self.screen.step(number, &step.title);
        let did = match &step.action {
            Action::Run(exec) => exec_in(guest, exec, &mut |bytes| self.screen.output(bytes)),
            Action::Copy(copy, tree) => put(guest, &self.context, copy, tree, &mut self.screen),
        };
        did.and_then(|()| remember(self.store, &self.cache, guest, step, number)).map_err(|error| {
            self.screen.fail();
            let kept = match at {
                0 => "",
                _ => "; the steps before it are kept for the next build",
            };
            let fetches = matches!(self.file.steps.get(at), Some(step) if matches!(step.what, What::Packages(_)));
            let offline = match fetches && self.spec.nets.is_empty() {
                true => "; its VM has no network: that takes the package passt, and a default route of this machine",
                false => "",
            };
            let (file, line, title) = (self.asked.file.display(), step.line, &step.title);
            anyhow::anyhow!("{file}:{line}: step {number} of {total} ({title}) {error:#}{offline}{kept}")
        })?;
        self.screen.done();
        Ok(())
    }

    /// Make an image of the guest's disk.
    fn finish(&mut self, guest: Guest) -> Result<images::digest::Digest> {
        self.screen.begin("image".to_owned());
        let result = self.image_of(guest);
        match &result {
            Ok(_) => self.screen.done(),
            Err(_) => self.screen.fail(),
        }
        result
    }

    fn image_of(&mut self, guest: Guest) -> Result<images::digest::Digest> {
        guest.must(&["/bin/sh", "-c", CLEAN])?;
        let scratch = self.images.scratch()?;
        let top = guest.hold_disk(scratch.path())?;
        if !guest.power_off()? {
            self.screen.note("the guest did not switch itself off and was killed: its file system is repaired at the next boot");
        }
        let base = &self.base.manifest;
        let below = base.disk.layers.first().context("the base has no disk")?;
        let (screen, layers) = (&mut self.screen, self.store.places().layers());
        let layer =
            self.images.disk_over(&top, &layers, below, &mut |done, total| screen.advance(done, total))?;
        let size =
            self.spec.disks.first().and_then(|disk| disk.size).map_or(base.disk.grows_to, |size| size.0);
        let manifest = Manifest {
            created_ms: now(),
            source: Source::File { base: self.file.base.to_string() },
            disk: Disk {
                layers: [layer].into_iter().chain(base.disk.layers.iter().copied()).collect(),
                size,
                grows_to: size,
            },
            defaults: self.plan.defaults.clone(),
            ..base.clone()
        };
        Ok(self.images.put(&manifest)?)
    }
}

/// Let a command be done. `heard` is given all that it prints.
pub fn exec_in(guest: &Guest, exec: &plan::Exec, heard: &mut dyn FnMut(&[u8])) -> Result<()> {
    match guest.exec(exec, heard) {
        Ok(Outcome::Exited(0)) => Ok(()),
        Ok(Outcome::Exited(code)) => bail!("failed with exit code {code}"),
        Ok(Outcome::Signaled(number)) => bail!("was ended by signal {number}"),
        Ok(Outcome::TimedOut(limit)) => bail!("took longer than its {limit} s and was killed"),
        Err(error) => Err(error.context("cannot be run")),
    }
}

/// Copy files into the guest.
pub fn put(
    guest: &Guest,
    context: &Context,
    copy: &Copy,
    tree: &images::file::context::Tree,
    screen: &mut Screen,
) -> Result<()> {
    // As `docker build`: a single file is put into what ends with a slash or is a directory, and is called so otherwise.
    let into = !tree.is_single() || copy.to.ends_with('/') || guest.look(&copy.to)? == Looked::Directory;
    let (dir, name) = match copy.to.rsplit_once('/').filter(|_| !into) {
        Some((dir, name)) => (dir, Some(name)),
        None => (copy.to.as_str(), None),
    };
    let dir = if dir.is_empty() { "/" } else { dir };
    guest.must(&["/bin/mkdir", "-p", "--", dir])?;
    let mut sent = 0_u64;
    guest.unpack(dir, copy.owner.as_deref(), |to| {
        let mut to = Counted {
            to,
            count: |more| {
                sent = sent.saturating_add(more);
                screen.advance(sent, tree.bytes());
            },
        };
        context.pack(tree, name, copy.mode, &mut to)
    })
}

/// Let the guest's disk be as the guest sees it, take a snapshot, and note that it is the result of `step`.
fn remember(store: &Store, cache: &Cache<'_>, guest: &Guest, step: &Planned, number: usize) -> Result<()> {
    warm::settle(guest)?;
    let snapshot = guest.snapshot(&format!("step-{number}"), &one_line(&step.title))?;
    let vm = store.snapshots().get(snapshot)?.vm;
    let result = StepResult {
        snapshot: snapshot.to_string(),
        vm: vm.to_string(),
        title: step.title.clone(),
        created_ms: now(),
    };
    Ok(cache.put_step(step.key, &result)?)
}

/// What a snapshot's comment can be.
fn one_line(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(200).collect()
}

/// Counts what goes by.
struct Counted<'a, F> {
    to: &'a mut dyn std::io::Write,
    count: F,
}

impl<F: FnMut(u64)> std::io::Write for Counted<'_, F> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.to.write(bytes)?;
        (self.count)(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}
