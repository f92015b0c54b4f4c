//! Guest operating systems for whole-machine tests: images that skiff itself makes, once, on this machine, and that its guests boot
//! wherever they run. They are the store of a user of their own, below the target directory; what tests write goes elsewhere.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};

use crate::initramfs::key;
use crate::progress::Step;
use crate::{lock, paths, setup, tool};

mod cloud;
mod container;
mod disks;
mod ticker;
mod tiny;

/// What goes into images: when it changes, they are made again.
const INPUTS: [&str; 4] = ["resources", "images/src", "cli/build.rs", "tests/xtask/src/systems"];
/// What takes no time: it is made each time.
const QUICK: Item = Item { name: "ticker", make: ticker::make };

/// Something that is made once.
struct Item {
    /// In messages, and the name of its record.
    name: &'static str,
    make: fn(&Systems) -> Result<()>,
}

/// What all tests of images need, in the order in which it is made.
const ITEMS: [Item; 7] = [
    Item { name: "debian:12", make: |systems| systems.build("debian:12") },
    Item { name: "tiny", make: tiny::make },
    Item { name: "container", make: container::make },
    Item { name: "disks", make: disks::make },
    Item { name: "debian:11", make: |systems| systems.build("debian:11") },
    Item { name: "debian:13", make: |systems| systems.build("debian:13") },
    Item { name: "cloud", make: cloud::make },
];

/// A user who has the images.
struct Systems {
    /// His data directory.
    home: PathBuf,
    skiff: PathBuf,
}

/// How the making went.
#[derive(Default)]
pub struct Outcome {
    /// How many are there.
    pub made: u32,
    /// Why others are not.
    pub failures: Vec<anyhow::Error>,
}

/// Where the images are.
///
/// # Errors
/// When the target directory cannot be told.
pub fn home() -> Result<PathBuf> {
    Ok(paths::target()?.join("systems"))
}

/// Makes the images that are not there, by the program `skiff`. One that fails leaves the others be.
///
/// # Errors
/// When the directory for them cannot be prepared.
pub fn ensure(skiff: &Path) -> Result<Outcome> {
    let home = home()?;
    let _lock = lock::hold(&home.with_extension("lock"))?;
    let (stamp, inputs) = (home.join("inputs"), inputs()?);
    if !fs::read_to_string(&stamp).is_ok_and(|built| built == inputs) {
        if home.exists() {
            fs::remove_dir_all(&home).with_context(|| format!("cannot remove {}", home.display()))?;
        }
        paths::make_dir(&home.join("made"))?;
        paths::write_whole(&stamp, inputs.as_bytes())?;
    }
    let systems = Systems { home, skiff: skiff.to_owned() };
    let mut outcome = Outcome::default();
    for item in &ITEMS {
        match systems.ensure(item) {
            Ok(()) => outcome.made += 1,
            Err(error) => {
                outcome.failures.push(error.context(format!("the image {} was not made", item.name)))
            }
        }
    }
    if let Err(error) = (QUICK.make)(&systems) {
        outcome.failures.push(error.context(format!("the program {} was not built", QUICK.name)));
    }
    Ok(outcome)
}

/// Makes skiff, then the images, and says where they are.
///
/// # Errors
/// When one cannot be made.
pub fn list() -> Result<()> {
    setup::run()?;
    tool::show(&mut tool::cargo(&["build", "--release", "--locked", "--package", "skiff"])?)?;
    let outcome = ensure(&paths::target()?.join("release/skiff"))?;
    println!("XDG_DATA_HOME={} skiff image ls", home()?.display());
    match outcome.failures.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

impl Systems {
    fn ensure(&self, item: &Item) -> Result<()> {
        let record = self.home.join("made").join(item.name);
        if record.exists() {
            return Ok(());
        }
        let step = Step::start(format!("making the image {}", item.name));
        (item.make)(self)?;
        paths::write_whole(&record, b"")?;
        step.done();
        Ok(())
    }

    /// A distribution, by its name.
    fn build(&self, name: &str) -> Result<()> {
        self.run(["image", "build", name]).map(drop)
    }

    /// Runs skiff with these arguments and returns what it prints.
    fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        self.run_in(&self.home, arguments)
    }

    /// The same, of a user with another data directory.
    fn run_in<S: AsRef<OsStr>>(&self, home: &Path, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        let mut skiff = Command::new(&self.skiff);
        skiff.args(arguments);
        skiff.env("XDG_DATA_HOME", home).env("XDG_STATE_HOME", home.join("state"));
        tool::capture(&mut skiff)
    }

    /// An empty directory for what is needed meanwhile.
    fn scratch(&self, name: &str) -> Result<Scratch> {
        let dir = self.home.join(format!("scratch-{name}"));
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
        }
        paths::make_dir(&dir)?;
        Ok(Scratch(dir))
    }
}

/// A directory, gone when this is.
struct Scratch(PathBuf);

impl Scratch {
    /// What is called so in it.
    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is removed by the next.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A path as a word for a program.
fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| anyhow!("the target directory's name is not UTF-8"))
}

/// A hash of all files that an image is made from, those of the archive apart.
fn inputs() -> Result<String> {
    let mut files: Vec<PathBuf> = INPUTS.iter().map(|input| paths::root().join(input)).collect();
    let mut contents = Vec::new();
    while let Some(path) = files.pop() {
        let failed = || format!("cannot read {}", path.display());
        if path.is_dir() {
            for entry in fs::read_dir(&path).with_context(failed)? {
                files.push(entry.with_context(failed)?.path());
            }
            files.sort();
        } else {
            contents.push(fs::read(&path).with_context(failed)?);
        }
    }
    Ok(key(&contents.iter().map(Vec::as_slice).collect::<Vec<_>>()))
}
