//! [`Ready`]: the snapshot that the tests of one image and machine start from, made if it is not there.
//!
//! ```text
//! key  = digest of   the image's ID · every step of the setup, with the content of what it copies · the machine · skiff's version and
//!                    the snapshot's format
//! slot = digest of   the image as it is called · the size of the machine · how many folders it shares · the project and the file, if there is a
//!                    setup
//! ```
//! A slot holds one snapshot: if its key is another, it is made anew. Whoever starts tests from one holds it until they are done.
//! Without a setup, a warm image's own snapshot is it, unless all is to be made anew. All of it is the main thread's, one after the other, before
//! any test runs.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::rc::Rc;

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

/// Why there is nothing to start from.
#[derive(Clone, Debug)]
pub struct Unready {
    pub why: String,
    /// What the setup printed, if it came so far.
    pub log: Vec<u8>,
}

/// The end of what a setup prints.
#[derive(Default)]
struct Log(Vec<u8>);

impl Log {
    fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        // Not at each line: what is left is moved.
        if self.0.len() > LOG_END.saturating_mul(2) {
            let surplus = self.0.len().saturating_sub(LOG_END);
            self.0.drain(..surplus);
        }
    }

    fn line(&mut self, text: &str) {
        if self.0.last().is_some_and(|last| *last != b'\n') {
            self.add(b"\n");
        }
        self.add(format!("{text}\n").as_bytes());
    }
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
    /// The file that says what is tested, if there is one.
    pub file: Option<&'a Path>,
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
    pub fn all(&self, cases: &[Case]) -> BTreeMap<Shape, Result<Ready, Unready>> {
        let mut all = BTreeMap::new();
        let mut images: BTreeMap<&str, Result<Image, String>> = BTreeMap::new();
        for case in cases {
            let key = shape(case);
            if all.contains_key(&key) {
                continue;
            }
            let find = || run::image::find(self.images, &case.image).map_err(|error| format!("{error:#}"));
            let image = images.entry(&case.image).or_insert_with(find);
            let mut log = Log::default();
            let ready = match image {
                Ok(image) => self.one(image, case, &mut log).map_err(|error| format!("{error:#}")),
                Err(why) => Err(why.clone()),
            };
            let ready = ready.map_err(|why| {
                crate::exit::say(&anyhow!("{}: {why}", case.image));
                if !log.0.is_empty() {
                    log.line(&why);
                }
                Unready { why, log: log.0 }
            });
            all.insert(key, ready);
        }
        all
    }

    fn one(&self, image: &Image, case: &Case, log: &mut Log) -> Result<Ready> {
        let spec = self.machine(image, case)?;
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
        let ready = |base: &Base, from: Id, hold: Hold| Ready {
            spec: shared.clone(),
            from,
            created_ms: base.created_ms,
            oom_lines: base.oom_lines,
            exec: exec.clone(),
            _hold: Some(Rc::new(hold)),
        };
        let warm = match self.fresh {
            true => None,
            false => run::image::warm(self.store, self.images, image, &spec, false)?,
        };
        if let Some(snapshot) = warm.as_ref().filter(|_| plan.steps.is_empty()) {
            self.tell(case, &format!("warm, from {}", moment(snapshot.created_ms)));
            let (created_ms, oom_lines) = (snapshot.created_ms, 0);
            return Ok(Ready { spec: shared, from: snapshot.id, created_ms, oom_lines, exec, _hold: None });
        }
        let (key, slot) = (key(&plan, &spec)?, self.slot(case));
        let cache = Cache::of(self.images);
        let _making =
            cache.make(slot, || self.tell(case, "another skiff makes what it starts from: waiting"))?;
        let before = self.store.base(&slot);
        if let Some(base) = before.as_ref().filter(|base| base.key == key && !self.fresh) {
            match self.usable(base) {
                Ok((from, hold)) => {
                    self.tell(case, &format!("warm, from {}", moment(base.created_ms)));
                    return Ok(ready(base, from, hold));
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
        let (base, hold) = self.make(&Wanted { image, case, spec, warm, plan, context, key, slot }, log)?;
        let from = base.snapshot.parse().context("its ID makes no sense")?;
        Ok(ready(&base, from, hold))
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

    /// Boot, do the setup, take the snapshot and remember it.
    fn make(&self, wanted: &Wanted<'_>, log: &mut Log) -> Result<(Base, Hold)> {
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
            log.line(&format!("# {}", step.title));
            let did = match &step.action {
                Action::Run(exec) => exec_in(&guest, exec, &mut |bytes| {
                    screen.output(bytes);
                    log.add(bytes);
                }),
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

    fn take(&self, wanted: &Wanted<'_>, called: &str, guest: &Guest) -> Result<(Base, Hold)> {
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
            outdated: false,
        };
        let hold = self.store.hold_base(&base.snapshot)?.context("somebody removes it at once")?;
        // Before the guest goes: nobody would need the snapshot.
        self.store.set_base(&wanted.slot, &base)?;
        Ok((base, hold))
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
