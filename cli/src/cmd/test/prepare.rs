//! [`Ready`]: the snapshot that the tests of one image and machine start from, made if it is not there.
//!
//! ```text
//! key  = digest of   the image's ID · every step of the setup, with the content of what it copies · the machine · skiff's version and
//!                    the snapshot's format
//! slot = digest of   the image as it is called · the size of the machine · how many folders it shares · the project and the file, if there is a
//!                    setup
//! ```
//! A slot holds one snapshot: if its key is another, it is made anew. Whoever starts tests from one holds it until they are done.
//! Without a setup, a warm image's own snapshot is it, unless all is to be made anew. The process that runs all tests [looks](Preparer::look) for it;
//! what is missing a process of its own [makes](Preparer::make), since it splits off a VM's and takes its time.

use std::path::Path;
use std::rc::Rc;

use anyhow::{Context as _, Result, anyhow, bail};
use images::digest::Digest;
use images::file::cache::Cache;
use images::file::context::Context;
use images::file::plan::{self, Action, Exec, Ground, Plan};
use images::file::{File, What};
use images::manifest::Agent;
use images::name::Name;
use images::store::{Image, Store as Images, StoreError};
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
use crate::held::Dir;
use crate::store::Store;
use crate::store::bases::{Base, Hold};
use crate::store::time;
use crate::terminal::note;

/// How much is kept of what a setup prints, in bytes.
const LOG_END: usize = 1 << 20;

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
    /// That the snapshot stays; an image's own does without.
    _hold: Option<Rc<Hold>>,
}

/// The end of what a setup prints.
#[derive(Default)]
pub struct Log(pub Vec<u8>);

impl Log {
    fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        // Not at each line: what is left is moved.
        if self.0.len() > LOG_END.saturating_mul(2) {
            let surplus = self.0.len().saturating_sub(LOG_END);
            self.0.drain(..surplus);
        }
    }

    /// This is a line of its own.
    pub fn line(&mut self, text: &str) {
        if self.0.last().is_some_and(|last| *last != b'\n') {
            self.add(b"\n");
        }
        self.add(format!("{text}\n").as_bytes());
    }
}

/// A machine that tests share.
pub type Shape = (String, Option<u8>, Option<Memory>);

/// Makes what is to be made.
#[derive(Clone, Copy)]
pub struct Preparer<'a> {
    pub store: &'a Store,
    pub images: &'a Images,
    pub suite: &'a Suite,
    /// The directory from which files are copied.
    pub project: &'a Path,
    /// The file that says what is tested, if there is one.
    pub file: Option<&'a Path>,
    /// Of the results: it is not copied.
    pub output: &'a Dir,
    /// Make every snapshot anew.
    pub fresh: bool,
}

/// What is there for a machine.
pub enum Look {
    /// All of it.
    Ready(Box<Ready>),
    /// It is to be made.
    Missing {
        /// Of a guest, in bytes, if it is known yet.
        memory: Option<u64>,
        /// The image is to be made first.
        image: bool,
    },
}

/// A machine and its setup.
struct Known<'a> {
    case: &'a Case,
    image: Image,
    /// Of the VM that is set up.
    spec: VmSpec,
    /// Of those that run tests.
    shared: VmSpec,
    plan: Plan,
    context: Context,
    /// What commands have.
    exec: Exec,
    key: String,
    slot: Digest,
}

/// The machine of a test.
pub fn shape(case: &Case) -> Shape {
    (case.image.clone(), case.cpus, case.memory)
}

impl Known<'_> {
    fn ready(&self, from: Id, created_ms: u64, oom_lines: usize, hold: Option<Hold>) -> Ready {
        let (spec, exec) = (self.shared.clone(), self.exec.clone());
        Ready { spec, from, created_ms, oom_lines, exec, _hold: hold.map(Rc::new) }
    }
}

impl Preparer<'_> {
    /// What is there for the machine of `case`; nothing, if it is `fresh` that is wanted.
    pub fn look(&self, case: &Case, fresh: bool) -> Result<Look> {
        let image = match self.images.hold(&case.image) {
            Err(StoreError::Unknown { .. }) => {
                return Ok(Look::Missing { memory: case.memory.map(|memory| memory.0), image: true });
            }
            held => run::image::checked(self.images, held?)?,
        };
        let known = self.know(image, case)?;
        let missing = || Look::Missing { memory: Some(known.spec.memory.size.0), image: false };
        if fresh {
            return Ok(missing());
        }
        if let Some(warm) = self.warm(&known)?.filter(|_| known.plan.steps.is_empty()) {
            return Ok(Look::Ready(Box::new(known.ready(warm.id, warm.created_ms, 0, None))));
        }
        let base = self.store.base(&known.slot).filter(|base| base.key == known.key);
        let usable = base.and_then(|base| Some((self.usable(&base).ok()?, base)));
        Ok(usable.map_or_else(missing, |((from, hold), base)| {
            Look::Ready(Box::new(known.ready(from, base.created_ms, base.oom_lines, Some(hold))))
        }))
    }

    /// Make what is missing for the machine of `case`. `log` is given what the setup prints. There must be no other threads.
    pub fn make(&self, case: &Case, log: &mut Log) -> Result<()> {
        let known = self.know(run::image::find(self.images, &case.image)?, case)?;
        let warm = match self.fresh {
            true => None,
            false => run::image::warm(self.store, self.images, &known.image, &known.spec, false)?,
        };
        if warm.is_some() && known.plan.steps.is_empty() {
            return Ok(());
        }
        let cache = Cache::of(self.images);
        let waiting = || note("another skiff makes what it starts from: waiting");
        let _making = cache.make(known.slot, waiting)?;
        let before = self.store.base(&known.slot);
        if let Some(base) = before.as_ref().filter(|base| base.key == known.key && !self.fresh) {
            match self.usable(base) {
                Ok(_) => return Ok(()),
                Err(error) => note(&format!("its snapshot cannot be used: {error:#}")),
            }
        }
        note(match before {
            Some(_) if self.fresh => "to be made anew",
            Some(before) if before.image != known.image.id.hex() => "the image is another: made anew",
            Some(before) if before.key != known.key => "the setup or the machine changed: made anew",
            _ => "made once, for all that follow",
        });
        self.boot(&known, warm.as_ref(), log)
    }

    fn know<'c>(&self, image: Image, case: &'c Case) -> Result<Known<'c>> {
        if image.manifest.agent == Agent::None {
            bail!("{}", crate::guest::no_agent_in(&case.image, "runs a command"));
        }
        let spec = self.machine(&image, case)?;
        let mut shared = spec.clone();
        volume::give(&mut shared, &self.suite.volumes)?;
        let context = Context::open(self.project)?;
        let plan = self.plan(&image, &spec, &context)?;
        let exec = Exec {
            env: plan.defaults.env.clone(),
            user: Some(plan.defaults.user.clone()).filter(|user| !user.is_empty()),
            cwd: Some(plan.defaults.cwd.clone()).filter(|cwd| !cwd.is_empty()),
            ..Exec::default()
        };
        let (key, slot) = (key(&plan, &spec)?, self.slot(case));
        Ok(Known { case, image, spec, shared, plan, context, exec, key, slot })
    }

    /// The image's own snapshot, if it can be used. Nobody hears why not.
    fn warm(&self, known: &Known<'_>) -> Result<Option<Manifest>> {
        match warm::start_from(self.store, self.images, &known.image, &known.spec)? {
            warm::Start::Warm(snapshot) => Ok(Some(*snapshot)),
            warm::Start::Cold(_) => Ok(None),
        }
    }

    /// The machine of `case`. Its folders are empty.
    fn machine(&self, image: &Image, case: &Case) -> Result<VmSpec> {
        let mut spec = run::image::spec(self.images, image)?;
        // They lead to one VM only.
        spec.ports = Vec::new();
        spec.cpus = case.cpus.unwrap_or(spec.cpus);
        spec.memory.size = case.memory.unwrap_or(spec.memory.size);
        // Whose folder each is, is said to each clone: the snapshot does not depend on it.
        let empty = FolderSpec { path: None, ..FolderSpec::new("") };
        spec.folders.extend(self.suite.volumes.iter().map(|_| empty.clone()));
        spec.validate().context("this machine cannot be")?;
        Ok(spec)
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
        let below = self.output.path().strip_prefix(self.project).ok().and_then(Path::to_str);
        let below = below.filter(|below| !below.is_empty());
        for step in &mut steps {
            if let (What::Copy(copy), Some(below)) = (&mut step.what, below) {
                copy.exclude.push(below.to_owned());
            }
        }
        steps
    }

    fn slot(&self, case: &Case) -> Digest {
        // Two files of one directory have two setups, and each is to keep its own.
        let file = self.file.unwrap_or(Path::new(""));
        let of = match self.suite.setup.is_empty() {
            true => String::new(),
            false => format!("{}\n{}", self.project.display(), file.display()),
        };
        let (cpus, memory, volumes) = (case.cpus, case.memory, self.suite.volumes.len());
        let text = format!("{}\n{cpus:?}\n{memory:?}\n{volumes}\n{of}", case.image);
        Digest::of(text.as_bytes())
    }

    /// The snapshot of `base`, held and checked.
    fn usable(&self, base: &Base) -> Result<(Id, Hold)> {
        let hold = self.store.hold_base(&base.snapshot)?.context("it is being removed")?;
        let manifest = self.store.snapshots().get(base.snapshot.parse().context("its ID makes no sense")?)?;
        if manifest.removed {
            bail!("it was removed");
        }
        clone::check(self.store, &manifest)?;
        Ok((manifest.id, hold))
    }

    /// Boot, or start from the image's own snapshot; do the setup, take the snapshot and remember it.
    fn boot(&self, known: &Known<'_>, warm: Option<&Manifest>, log: &mut Log) -> Result<()> {
        let steps = &known.plan.steps;
        let mut screen = Screen::new(false, steps.len());
        screen.begin(if warm.is_some() { "start" } else { "boot" }.to_owned());
        let name = format!("test-{}", Id::draw().context("cannot draw a name")?);
        let guest = Guest::start_as(self.store, name, &known.spec, warm.map(|warm| warm.id));
        let guest = guest.inspect_err(|_| screen.fail())?;
        screen.done();
        for (at, step) in steps.iter().enumerate() {
            screen.begin(format!("{}/{} {}", at.saturating_add(1), steps.len(), step.title));
            log.line(&format!("# {}", step.title));
            let did = match &step.action {
                Action::Run(exec) => exec_in(&guest, exec, &mut |bytes| {
                    screen.output(bytes);
                    log.add(bytes);
                }),
                Action::Copy(copy, tree) => put(&guest, &known.context, copy, tree, &mut screen),
            };
            did.map_err(|error| {
                screen.fail();
                anyhow!("the setup's {} {error:#}", step.title)
            })?;
            screen.done();
        }
        screen.begin("snapshot".to_owned());
        self.take(known, &guest).inspect_err(|_| screen.fail())?;
        screen.done();
        Ok(())
    }

    fn take(&self, known: &Known<'_>, guest: &Guest) -> Result<()> {
        let called = called(known.case);
        warm::settle(guest)?;
        warm::wait_until_free(guest)?;
        // A guest without dmesg says it on its console, or not at all.
        let oom_lines = kernel_log(guest).map_or(0, |log| count_oom(&log));
        let comment: String = format!("what tests on {called} start from").chars().take(200).collect();
        let snapshot = guest.snapshot("test", &comment)?;
        let manifest = self.store.snapshots().get(snapshot)?;
        let base = Base {
            name: called,
            key: known.key.clone(),
            image: known.image.id.hex(),
            snapshot: snapshot.to_string(),
            vm: manifest.vm.to_string(),
            created_ms: manifest.created_ms,
            oom_lines,
            outdated: false,
        };
        // Before the guest goes: nobody would need the snapshot.
        self.store.set_base(&known.slot, &base)
    }
}

/// The image, and what of the machine is not its own.
pub fn called(case: &Case) -> String {
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
pub fn moment(created_ms: u64) -> String {
    let text = time::rfc3339(created_ms);
    let second = text.split_once('.').map_or(text.as_str(), |(second, _)| second);
    format!("{second}Z ({} ago)", time::since(created_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_a_setup_prints_the_end_is_kept() {
        let mut log = Log::default();
        log.line("# run make");
        log.add(b"cc: error");
        log.line("the setup's run make failed");
        assert_eq!(log.0, b"# run make\ncc: error\nthe setup's run make failed\n");
        for _ in 0..5 {
            log.add(&vec![b'x'; LOG_END]);
        }
        log.line("last");
        assert!(log.0.len() <= LOG_END * 2 + 10 && log.0.ends_with(b"x\nlast\n"));
    }

    #[test]
    fn moments_are_told_with_their_age() {
        assert!(moment(time::now()).ends_with("Z (0s ago)"), "{}", moment(time::now()));
    }
}
