//! [`Ready`]: the snapshot that the tests of one image and machine start from, made if it is not there.
//!
//! ```text
//! key  = digest of   the image's ID · every step of the setup, with the content of what it copies · the machine · skiff's version and
//!                    the snapshot's format
//! slot = digest of   the image as it is called · the size of the machine · how many folders it shares · the project, if there is a setup
//! ```
//! A slot holds one snapshot: if its key is another, it is made anew. Without a setup, a warm image's own snapshot is it. All of it is the main
//! thread's, one after the other, before any test runs.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use images::digest::Digest;
use images::file::cache::Cache;
use images::file::context::Context;
use images::file::plan::{self, Action, Exec, Ground, Plan};
use images::file::{File, What};
use images::name::Name;
use images::store::{Image, Store as Images};
use vmm::snapshot::Id;
use vmm::snapshot::manifest::{FORMAT, Manifest};
use vmm::spec::{FolderSpec, Memory, VmSpec};

use super::matrix::Case;
use super::outcome::count_oom;
use super::suite::Suite;
use super::worker::kernel_log;
use crate::cmd::image::file::guest::Guest;
use crate::cmd::image::file::show::Screen;
use crate::cmd::image::file::{exec_in, put};
use crate::cmd::image::warm;
use crate::cmd::run::volume;
use crate::cmd::{clone, run};
use crate::store::Store;
use crate::store::bases::Base;
use crate::store::time;
use crate::terminal::note;

/// What tests start from.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Of the VM.
    pub spec: VmSpec,
    /// The snapshot.
    pub from: Id,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// How many lines its kernel had said of want of memory.
    pub oom_lines: usize,
    /// The environment, the user and the directory of a command in it.
    pub exec: Exec,
}

/// A machine that tests share.
pub type Shape = (String, Option<u8>, Option<Memory>);

/// Makes what is to be made.
pub struct Preparer<'a> {
    pub store: &'a Store,
    pub images: &'a Images,
    pub suite: &'a Suite,
    /// The directory from which files are copied.
    pub project: &'a Path,
    /// Of the results: it is not copied.
    pub output: &'a Path,
    /// Make every snapshot anew.
    pub fresh: bool,
}

/// A snapshot that is to be made.
struct Wanted<'a> {
    image: &'a Image,
    case: &'a Case,
    spec: &'a VmSpec,
    /// The image's own snapshot, from which the guest starts instead of a boot.
    warm: Option<&'a Manifest>,
    plan: &'a Plan,
    context: &'a Context,
    key: String,
    slot: Digest,
}

/// The machine of a test.
pub fn shape(case: &Case) -> Shape {
    (case.image.clone(), case.cpus, case.memory)
}

impl Preparer<'_> {
    /// For all machines of `cases`. What cannot be made is said, and why is known to whoever wants to run on it.
    pub fn all(&self, cases: &[Case]) -> BTreeMap<Shape, Result<Ready, String>> {
        let mut all = BTreeMap::new();
        let mut images: BTreeMap<&str, Result<Image, String>> = BTreeMap::new();
        for case in cases {
            let key = shape(case);
            if all.contains_key(&key) {
                continue;
            }
            let find = || run::image::find(self.images, &case.image).map_err(|error| format!("{error:#}"));
            let image = images.entry(&case.image).or_insert_with(find);
            let ready = match image {
                Ok(image) => self.one(image, case).map_err(|error| format!("{error:#}")),
                Err(why) => Err(why.clone()),
            };
            if let Err(why) = &ready {
                crate::exit::say(&anyhow!("{}: {why}", case.image));
            }
            all.insert(key, ready);
        }
        all
    }

    fn one(&self, image: &Image, case: &Case) -> Result<Ready> {
        let mut spec = run::image::spec(self.images, image)?;
        // They lead to one VM only.
        spec.ports = Vec::new();
        spec.cpus = case.cpus.unwrap_or(spec.cpus);
        spec.memory.size = case.memory.unwrap_or(spec.memory.size);
        // Whose folder each is, is said to each clone: the snapshot does not depend on it.
        let empty = FolderSpec { path: None, ..FolderSpec::new("") };
        spec.folders.extend(self.suite.volumes.iter().map(|_| empty.clone()));
        spec.validate().context("this machine cannot be")?;
        let mut shared = spec.clone();
        volume::give(&mut shared, &self.suite.volumes)?;
        let context = Context::open(self.project)?;
        let plan = self.plan(image, &spec, &context)?;
        let exec = Exec {
            env: plan.defaults.env.clone(),
            user: Some(plan.defaults.user.clone()).filter(|user| !user.is_empty()),
            cwd: Some(plan.defaults.cwd.clone()).filter(|cwd| !cwd.is_empty()),
            ..Exec::default()
        };
        let ready = |base: &Base, from: Id| Ready {
            spec: shared.clone(),
            from,
            created_ms: base.created_ms,
            oom_lines: base.oom_lines,
            exec: exec.clone(),
        };
        let warm = run::image::warm(self.store, self.images, image, &spec, false)?;
        if let Some(snapshot) = warm.as_ref().filter(|_| plan.steps.is_empty()) {
            self.tell(case, &format!("warm, from {}", moment(snapshot.created_ms)));
            let (created_ms, oom_lines) = (snapshot.created_ms, 0);
            return Ok(Ready { spec: shared, from: snapshot.id, created_ms, oom_lines, exec });
        }
        let (key, slot) = (key(&plan, &spec)?, self.slot(case));
        let cache = Cache::of(self.images);
        let _making =
            cache.make(slot, || self.tell(case, "another skiff makes what it starts from: waiting"))?;
        let before = self.store.base(&slot);
        if let Some(base) = before.as_ref().filter(|base| base.key == key && !self.fresh) {
            match self.usable(base) {
                Ok(from) => {
                    self.tell(case, &format!("warm, from {}", moment(base.created_ms)));
                    return Ok(ready(base, from));
                }
                Err(error) => self.tell(case, &format!("its snapshot cannot be used: {error:#}")),
            }
        }
        let why = match before {
            Some(_) if self.fresh => "to be made anew",
            Some(before) if before.image != image.id.hex() => "the image is another: made anew",
            Some(before) if before.key != key => "the setup or the machine changed: made anew",
            _ => "made once, for all that follow",
        };
        self.tell(case, why);
        let (spec, warm, plan, context) = (&spec, warm.as_ref(), &plan, &context);
        let base = self.make(&Wanted { image, case, spec, warm, plan, context, key, slot })?;
        let from = base.snapshot.parse().context("its ID makes no sense")?;
        Ok(ready(&base, from))
    }

    /// The steps of the setup, and what commands have.
    fn plan(&self, image: &Image, spec: &VmSpec, context: &Context) -> Result<Plan> {
        let name = |text: &str| text.parse::<Name>().ok();
        let base = image.names.first().cloned().or_else(|| name("image"));
        let suite = self.suite;
        let file = File {
            name: None,
            base: base.context("the image has no name")?,
            steps: self.steps(),
            user: suite.user.clone(),
            workdir: suite.workdir.clone(),
            env: suite.env.clone(),
            ports: Vec::new(),
            publish: None,
            entrypoint: None,
            command: None,
            cpus: None,
            memory: None,
            size: None,
            warm: false,
        };
        let size = spec.disks.first().and_then(|disk| disk.size).map_or(0, |size| size.0);
        let ground = Ground { version: env!("CARGO_PKG_VERSION"), base: image.id, size };
        Ok(plan::plan(&file, &ground, &image.manifest.defaults, context, &mut |_| {})?)
    }

    /// Those of the suite, none of which copies results: they are others each time.
    fn steps(&self) -> Vec<images::file::Step> {
        let mut steps = self.suite.setup.clone();
        let below = self.output.strip_prefix(self.project).ok().and_then(Path::to_str);
        let below = below.filter(|below| !below.is_empty());
        for step in &mut steps {
            if let (What::Copy(copy), Some(below)) = (&mut step.what, below) {
                copy.exclude.push(below.to_owned());
            }
        }
        steps
    }

    fn slot(&self, case: &Case) -> Digest {
        let project = if self.suite.setup.is_empty() { PathBuf::new() } else { self.project.to_owned() };
        let (cpus, memory, volumes) = (case.cpus, case.memory, self.suite.volumes.len());
        let text = format!("{}\n{cpus:?}\n{memory:?}\n{volumes}\n{}", case.image, project.display());
        Digest::of(text.as_bytes())
    }

    /// The snapshot of `base`, checked.
    fn usable(&self, base: &Base) -> Result<Id> {
        let manifest = self.store.snapshots().get(base.snapshot.parse().context("its ID makes no sense")?)?;
        if manifest.removed {
            bail!("it was removed");
        }
        clone::check(self.store, &manifest)?;
        Ok(manifest.id)
    }

    /// Boot, do the setup, take the snapshot and remember it.
    fn make(&self, wanted: &Wanted<'_>) -> Result<Base> {
        let (steps, warm) = (&wanted.plan.steps, wanted.warm);
        let mut screen = Screen::new(false, steps.len());
        let called = called(wanted.case);
        screen.begin(format!("[{called}] {}", if warm.is_some() { "start" } else { "boot" }));
        let name = format!("test-{}", Id::draw().context("cannot draw a name")?);
        let guest = Guest::start_as(self.store, name, wanted.spec, warm.map(|warm| warm.id));
        let guest = guest.inspect_err(|_| screen.fail())?;
        screen.done();
        for (at, step) in steps.iter().enumerate() {
            screen.begin(format!("[{called}] {}/{} {}", at.saturating_add(1), steps.len(), step.title));
            let did = match &step.action {
                Action::Run(exec) => exec_in(&guest, exec, &mut screen),
                Action::Copy(copy, tree) => put(&guest, wanted.context, copy, tree, &mut screen),
            };
            did.map_err(|error| {
                screen.fail();
                anyhow!("the setup's {} {error:#}", step.title)
            })?;
            screen.done();
        }
        screen.begin(format!("[{called}] snapshot"));
        let base = self.take(wanted, &called, &guest).inspect_err(|_| screen.fail())?;
        screen.done();
        Ok(base)
    }

    fn take(&self, wanted: &Wanted<'_>, called: &str, guest: &Guest) -> Result<Base> {
        warm::settle(guest)?;
        warm::wait_until_free(guest)?;
        // A guest without dmesg says it on its console, or not at all.
        let oom_lines = kernel_log(guest).map_or(0, |log| count_oom(&log));
        let comment: String = format!("what tests on {called} start from").chars().take(200).collect();
        let snapshot = guest.snapshot("test", &comment)?;
        let manifest = self.store.snapshots().get(snapshot)?;
        let base = Base {
            name: called.to_owned(),
            key: wanted.key.clone(),
            image: wanted.image.id.hex(),
            snapshot: snapshot.to_string(),
            vm: manifest.vm.to_string(),
            created_ms: manifest.created_ms,
            oom_lines,
        };
        // Before the guest goes: nobody would need the snapshot.
        self.store.set_base(&wanted.slot, &base)?;
        Ok(base)
    }

    fn tell(&self, case: &Case, text: &str) {
        let _ = std::io::stderr().flush();
        note(&format!("[{}] {text}", called(case)));
    }
}

/// The image, and what of the machine is not its own.
fn called(case: &Case) -> String {
    let cpus = case.cpus.map(|cpus| format!(" cpus={cpus}")).unwrap_or_default();
    let memory = case.memory.map(|memory| format!(" memory={memory}")).unwrap_or_default();
    format!("{}{cpus}{memory}", case.image)
}

/// Of all that the snapshot depends on.
fn key(plan: &Plan, spec: &VmSpec) -> Result<String> {
    let steps = plan.steps.last().map_or(plan.start, |step| step.key);
    let spec = toml::to_string(spec).context("the spec cannot be written as TOML")?;
    Ok(Digest::of(format!("{FORMAT}\n{}\n{spec}", steps.hex()).as_bytes()).hex())
}

/// `2026-01-01T00:00:00Z (5m ago)`.
fn moment(created_ms: u64) -> String {
    let text = time::rfc3339(created_ms);
    let second = text.split_once('.').map_or(text.as_str(), |(second, _)| second);
    format!("{second}Z ({} ago)", time::since(created_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_told_with_their_age() {
        assert!(moment(time::now()).ends_with("Z (0s ago)"), "{}", moment(time::now()));
    }
}
