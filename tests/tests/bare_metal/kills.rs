//! Processes that are killed at any moment of all that changes a VM's disks and snapshots. What was there stays there, to the
//! byte.
//!
//! The guest writes a journal (`tests/guests/testguest/src/journal.rs`) and finds by itself what its disk has lost. Snapshots are
//! known by the hash of their disk, from the moment they are first listed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use skiff_tests::user::User;

/// How many in each of the two tests, which run side by side.
const KILLS: u64 = 500;
/// More are removed.
const MOST: usize = 6;
/// How often it is swept at the end.
const TRIES: u32 = 50;
/// How often everything is looked at.
const LOOK: u64 = 25;
const VM: &str = "victim";

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % end
    }
}

/// A user, the VM that suffers, and what must not be lost.
struct Victim {
    user: User,
    random: Random,
    /// The hash of each snapshot's disk.
    snapshots: BTreeMap<String, String>,
    /// What the guest has told that its disk has, if nothing may have put it back since.
    flushed: u64,
    /// How often it had told of that when it was put back last.
    told: usize,
    made: u64,
}

impl Victim {
    fn new(seed: u64) -> Self {
        let user = User::new(&format!("kills-{seed}"));
        let disk = user.home().join("disk.img");
        std::fs::File::create(&disk).and_then(|file| file.set_len(1 << 20)).expect("a disk");
        user.start(
            VM,
            "testguest",
            "test=journal",
            &["--memory", "64M", "--disk", &format!("path={},layers=on", disk.display())],
        );
        Self { user, random: Random(seed), snapshots: BTreeMap::new(), flushed: 0, told: 0, made: 0 }
    }

    /// The VM runs, and its guest has looked at all of its disk.
    fn settle(&mut self) {
        let running = self.user.run(&["ps", "-q"]).lines().any(|name| name == VM);
        if !running {
            let boots = |said: &str| said.matches("journal ").count();
            let before = boots(&self.user.said(VM));
            self.user.run(&["start", VM]);
            let said = self.user.wait(VM, "found its journal", |said| {
                boots(said) > before && said.rsplit("journal ").next().is_some_and(|rest| rest.contains('\n'))
            });
            let count = number_after(&said, "journal ").unwrap_or_default();
            assert!(count >= self.flushed, "{} records were flushed, {count} are there", self.flushed);
            self.flushed = count;
        }
        // Of this life: what was told before a rollback is no promise any more.
        let told = self.told;
        let said = self.user.wait(VM, "wrote", |said| said.matches("wrote ").count() > told);
        self.flushed = number_after(&said, "wrote ").unwrap_or(self.flushed);
    }

    /// SIGKILL for the VM.
    fn kill(&self) {
        let list: serde_json::Value = serde_json::from_str(&self.user.run(&["ps", "--json"])).expect("JSON");
        let vms = list.as_array().expect("a list");
        let vm = vms.iter().find(|vm| vm["name"] == VM).and_then(|vm| vm["pid"].as_i64());
        if let Some(pid) = vm.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Types a command, and kills it or the VM, or both, while it works. True if it succeeded all the same.
    fn disturb(&mut self, words: &[&str]) -> bool {
        let mut child = spawn(self.user.skiff().args(words));
        std::thread::sleep(Duration::from_micros(self.random.below(25_000)));
        match self.random.below(4) {
            0 => self.kill(),
            1 => {
                let _ = child.kill();
                self.kill();
            }
            _ => drop(child.kill()),
        }
        child.wait().is_ok_and(|status| status.success())
    }

    fn any(&mut self) -> Option<String> {
        let count = self.snapshots.len() as u64;
        let index = if count == 0 { return None } else { self.random.below(count) };
        self.snapshots.keys().nth(index as usize).cloned()
    }

    /// One thing that a user does, and is killed at.
    fn step(&mut self) {
        let some = self.any();
        match (self.random.below(6), some) {
            (0, _) => {
                std::thread::sleep(Duration::from_micros(self.random.below(20_000)));
                self.kill();
            }
            (1, Some(name)) => {
                self.disturb(&["rollback", VM, &name]);
                // The VM may have been asked, and still be at it.
                std::thread::sleep(Duration::from_millis(30));
                let _ = self.user.output(&["stats", VM]);
                self.flushed = 0;
                self.told = self.user.said(VM).matches("wrote ").count();
            }
            (2, Some(name)) => {
                let from = format!("{VM}@{name}");
                self.disturb(&["clone", &from, "--name", "other"]);
                // It may never have come to be.
                let _ = self.user.output(&["rm", "--force", "other"]);
            }
            (3, Some(name)) if self.snapshots.len() > 2 => self.remove(&name),
            (4, Some(_)) => drop(self.disturb(&["system", "prune", "--force"])),
            _ => self.create(),
        }
    }

    fn create(&mut self) {
        self.made += 1;
        let name = format!("k{}", self.made);
        if self.disturb(&["snapshot", "create", VM, &name]) {
            let listed = self.listed();
            assert!(listed.contains(&name), "{name} was made, and is not among {listed:?}");
        }
    }

    /// Whatever becomes of the command, the snapshot is there or not, and the others are.
    fn remove(&mut self, name: &str) {
        let done = self.disturb(&["snapshot", "rm", VM, name]);
        let there = self.listed().contains(&name.to_owned());
        assert!(!(done && there), "{name} was removed, and is still listed");
        if !there {
            self.snapshots.remove(name);
        }
    }

    fn listed(&self) -> Vec<String> {
        self.user.run(&["snapshot", "ls", VM, "-q"]).lines().map(str::to_owned).collect()
    }

    /// Every snapshot that was there is there; those that have come are known from here on.
    fn account(&mut self) {
        let listed = self.listed();
        for name in self.snapshots.keys() {
            assert!(listed.contains(name), "{name} is lost: only {listed:?} are there");
        }
        for name in listed {
            if !self.snapshots.contains_key(&name) {
                let hash = self.hash(&name);
                self.snapshots.insert(name, hash);
            }
        }
        while self.snapshots.len() > MOST {
            let Some(name) = self.any() else { return };
            self.user.run(&["snapshot", "rm", VM, &name]);
            self.snapshots.remove(&name);
        }
    }

    /// The hash of a snapshot's disk, by QEMU's reading of its layers.
    ///
    /// A sweep that a killed command has left to another process may merge two layers while QEMU is between opening the one and
    /// the other; skiff itself pins them. So what is not there at one look must be there at a later one.
    fn hash(&self, name: &str) -> String {
        let mut wrong = String::new();
        for _ in 0..20 {
            match self.hash_now(name) {
                Ok(hash) => return hash,
                Err(error) => wrong = error,
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("the disk of {name} cannot be read: {wrong}");
    }

    fn hash_now(&self, name: &str) -> Result<String, String> {
        let shown = self.user.run(&["snapshot", "show", VM, name, "--json"]);
        let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
        let layer = shown["layers"][0].as_str().expect("a layer");
        let raw = self.user.home().join("look.raw");
        tool(Command::new("qemu-img").args(["check", layer]))?;
        tool(Command::new("qemu-img").args(["convert", "-O", "raw", layer]).arg(&raw))?;
        let said = tool(Command::new("sha256sum").arg(&raw))?;
        Ok(said.split_whitespace().next().unwrap_or_default().to_owned())
    }

    /// Every snapshot's disk is what it was, and a guest that goes on from one finds memory and disk as they belong together.
    fn look(&mut self) {
        for (name, hash) in &self.snapshots {
            assert_eq!(&self.hash(name), hash, "the disk of {name} is not what it was");
        }
        if let Some(name) = self.any() {
            self.user.run(&["clone", &format!("{VM}@{name}"), "--name", "look"]);
            self.user.wait_for("look", "wrote ");
            self.user.run(&["rm", "--force", "look"]);
        }
    }
}

/// The number that follows the last `word`.
fn number_after(said: &str, word: &str) -> Option<u64> {
    said.rsplit_once(word)?.1.lines().next()?.trim().parse().ok()
}

fn spawn(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("skiff starts")
}

fn tool(command: &mut Command) -> Result<String, String> {
    let output = command.output().expect("the program is there");
    if !output.status.success() {
        return Err(format!("{command:?}: {output:?}"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn names(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn survive(seed: u64) {
    let mut victim = Victim::new(seed);
    for kill in 1..=KILLS {
        victim.settle();
        victim.step();
        victim.account();
        if kill % LOOK == 0 {
            victim.look();
        }
    }
    victim.settle();
    victim.look();
    let Victim { user, .. } = &victim;
    user.run(&["system", "prune", "--force"]);
    let drafts: Vec<PathBuf> = names(&user.data().join("snapshots"));
    let drafts: Vec<&PathBuf> = drafts.iter().filter(|path| path.to_string_lossy().contains("/.")).collect();
    assert!(drafts.is_empty(), "what nobody finished is still there: {drafts:?}");
    user.run(&["rm", "--force", "--snapshots", VM]);
    let layers = || names(&user.data().join("layers"));
    // What a VM that was just killed has split off holds its layers until it is gone, too: the next sweep has them.
    for _ in 0..TRIES {
        user.run(&["system", "prune", "--force"]);
        if layers().is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(layers(), Vec::<PathBuf>::new(), "layers that nobody needs");
}

#[test]
fn nothing_is_lost_by_five_hundred_kills() {
    survive(1);
}

#[test]
fn nothing_is_lost_by_another_five_hundred_kills() {
    survive(2);
}
