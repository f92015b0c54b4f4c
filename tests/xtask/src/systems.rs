//! Guest operating systems for whole-machine tests: images that skiff itself builds, once, on this machine, and that its guests boot
//! wherever they run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::initramfs::key;
use crate::progress::Step;
use crate::{paths, setup, tool};

/// What is built, by the names of recipes.
const NAMES: [&str; 3] = ["debian:11", "debian:12", "debian:13"];
/// What goes into images: when it changes, they are built again.
const INPUTS: [&str; 2] = ["resources", "images/src/debian"];

/// Returns the data directory of a user who has the images, making them first if need be.
///
/// # Errors
/// When one cannot be built.
fn ensure() -> Result<PathBuf> {
    let home = paths::target()?.join("systems");
    let (stamp, inputs) = (home.join("inputs"), inputs()?);
    if !fs::read_to_string(&stamp).is_ok_and(|built| built == inputs) {
        if home.exists() {
            fs::remove_dir_all(&home).with_context(|| format!("cannot remove {}", home.display()))?;
        }
        paths::make_dir(&home)?;
        for name in NAMES {
            build(&home, name)?;
        }
        paths::write_whole(&stamp, inputs.as_bytes())?;
    }
    Ok(home)
}

/// Makes skiff, then the images, and says where they are.
///
/// # Errors
/// As [`ensure`].
pub fn list() -> Result<()> {
    setup::run()?;
    tool::show(&mut tool::cargo(&["build", "--release", "--locked", "--package", "skiff"])?)?;
    println!("XDG_DATA_HOME={} skiff image ls", ensure()?.display());
    Ok(())
}

fn build(home: &Path, name: &str) -> Result<()> {
    let step = Step::start(format!("building the image {name}"));
    let mut skiff = Command::new(paths::target()?.join("release/skiff"));
    skiff.args(["image", "build", name]);
    skiff.env("XDG_DATA_HOME", home).env("XDG_STATE_HOME", home.join("state"));
    tool::capture(&mut skiff)?;
    step.done();
    Ok(())
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
