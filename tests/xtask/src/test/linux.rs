//! Whole Linux guests: `linux-guests`, straight on this machine or in a box for each of its processors, up to two. A box with more than one
//! processor is not reliable (see [`crate::kvmbox::Options::cpus`]). Whoever is done with a test takes the next one, the longest first, so that all
//! end at about the same time.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::Images;
use super::count::Count;
use super::runner::{Runner, Verdict};
use crate::linux_guest::Guest;
use crate::place::Place;
use crate::{paths, systems, tool};

/// Memory of the box in MiB: the largest guest has 5 GiB and skiff gives no guest more than its host has. What no
/// guest touches costs the real machine nothing.
const BOX_MEMORY: &str = "6144";
/// All that one box does.
const BOX_TIME: Duration = Duration::from_secs(60 * 60);
/// How often a test is begun of which nobody could say how it went.
const TRIES: u32 = 3;

/// The tests of whole Linux guests.
pub struct LinuxGuests {
    /// `linux-guests` and what it always is told.
    words: Vec<OsString>,
    /// The tests' names, the longest first.
    names: Vec<String>,
}

/// Makes everything that guests boot, but for images.
///
/// # Errors
/// When the archive cannot be reached or the target directory cannot be written.
pub fn prepare() -> Result<()> {
    for guest in Guest::ensure_all()? {
        // One test boots it.
        guest.kernel.unpacked()?;
    }
    Ok(())
}

impl LinuxGuests {
    /// Those with `filter` in their names, of the program `skiff`. What guests boot is there, and the program that runs the tests is built.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn find(skiff: &Path, filter: &str) -> Result<Self> {
        let target = paths::target()?;
        let mut words: Vec<OsString> = vec![target.join("debug/linux-guests").into()];
        let options: [(&str, PathBuf); 3] = [
            ("--skiff", skiff.to_owned()),
            ("--kernels", target.join("kernels")),
            ("--systems", systems::home()?),
        ];
        for (option, path) in options {
            words.extend([option.into(), path.into()]);
        }
        let (program, rest) = words.split_first().context("there is no command")?;
        let listed = tool::capture(Command::new(program).args(rest).args(["--filter", filter, "--list"]))?;
        Ok(Self { names: listed.lines().map(str::to_owned).collect(), words })
    }

    /// Whether any of them boots images.
    pub fn need_systems(&self) -> bool {
        self.names.iter().any(|name| boots_image(name))
    }

    /// Runs them, those that boot images when these are made.
    ///
    /// # Errors
    /// When no place for them can be made.
    pub fn run(&self, images: &Images) -> Result<Count> {
        if self.names.is_empty() {
            return Ok(Count::default());
        }
        let place = Place::of_machine();
        println!("running {}", place.describe());
        let emulated = matches!(place, Place::Kvmbox(_));
        let (count, mut words) = match emulated {
            false => (1, Vec::new()),
            true => (thread::available_parallelism().map_or(1, |count| count.get().min(2)), box_words()?),
        };
        words.extend(self.words.iter().cloned());
        words.push("--serve".into());
        let queue = Queue { names: Mutex::new(self.names.iter().map(String::as_str).collect()), images };
        thread::scope(|scope| {
            let started: Vec<_> =
                (0..count).map(|_| scope.spawn(|| serve(&queue, &words, emulated))).collect();
            started.into_iter().try_fold(Count::default(), |sum, one| {
                Ok(sum.plus(one.join().map_err(|_| anyhow!("a thread that ran tests died"))??))
            })
        })
    }
}

fn box_words() -> Result<Vec<OsString>> {
    let mut words: Vec<OsString> = vec![paths::own_program()?.into()];
    let seconds = BOX_TIME.as_secs().to_string();
    words.extend(["kvmbox", "--memory", BOX_MEMORY, "--timeout", &seconds, "--"].map(OsString::from));
    Ok(words)
}

/// The tests that are to be run yet.
struct Queue<'a> {
    names: Mutex<VecDeque<&'a str>>,
    images: &'a Images,
}

impl<'a> Queue<'a> {
    /// The next one. Those that boot images are left for later as long as these are not made.
    fn next(&self) -> Option<&'a str> {
        if let Some(name) = self.take(self.images.are_made()) {
            return Some(name);
        }
        self.images.wait();
        self.take(true)
    }

    fn take(&self, with_images: bool) -> Option<&'a str> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let at = names.iter().position(|name| with_images || !boots_image(name))?;
        names.remove(at)
    }
}

fn boots_image(name: &str) -> bool {
    name.starts_with("systems/")
}

/// Runs tests until there are no more, in one place after the other if they break. Emulated machines also break what runs in them now and then:
/// who fails in one is tried once more in another, and that is told.
fn serve(queue: &Queue<'_>, words: &[OsString], emulated: bool) -> Result<Count> {
    let (program, rest) = words.split_first().context("there is no command")?;
    let mut count = Count::default();
    let mut next = queue.next().map(|name| (name, 0));
    while next.is_some() {
        let mut runner = Runner::start(tool::end_with_us(Command::new(program).args(rest)))?;
        while let Some((name, tries)) = next.take() {
            match runner.run(name) {
                Verdict::Passed => count = count.plus(Count::ONE),
                Verdict::Failed if emulated && tries == 0 => {
                    println!("{name} is tried once more, in another emulated machine");
                    next = Some((name, tries + 1));
                    break;
                }
                Verdict::Failed => count = count.plus(Count::FAILURE),
                Verdict::Lost if tries + 1 < TRIES => {
                    println!("what ran {name} has hung or ended: another goes on with it");
                    next = Some((name, tries + 1));
                    break;
                }
                Verdict::Lost => {
                    println!("FAILED {name}: what ran it has hung or ended {TRIES} times");
                    count = count.plus(Count::FAILURE);
                    next = queue.next().map(|name| (name, 0));
                    break;
                }
            }
            next = queue.next().map(|name| (name, 0));
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_boots_images_waits_for_them() {
        let images = Images::default();
        let names = ["systems/pci/build", "12-cloud/pci/exec", "systems/pci/disks", "12-cloud/pci/boot"];
        let queue = Queue { names: Mutex::new(names.into()), images: &images };
        assert_eq!(queue.next(), Some("12-cloud/pci/exec"));
        images.make(|| Ok(Count::ONE));
        assert_eq!(queue.next(), Some("systems/pci/build"));
        let rest: Vec<_> = std::iter::from_fn(|| queue.next()).collect();
        assert_eq!(rest, ["systems/pci/disks", "12-cloud/pci/boot"]);
    }

    #[test]
    fn who_has_nothing_else_waits() {
        let images = Images::default();
        let queue = Queue { names: Mutex::new(["systems/pci/build"].into()), images: &images };
        thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.next());
            images.make(|| anyhow::bail!("no network"));
            assert_eq!(waiting.join().unwrap(), Some("systems/pci/build"));
        });
        assert_eq!(images.wait().1, Count::FAILURE);
    }
}
