//! Snapshots, rollback, clones and what they leave behind, as a user sees them, with a tiny guest on /dev/kvm. Without a usable
//! /dev/kvm these tests say so and pass.

mod support;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use support::{Home, READY, done, wait};

/// A VM that runs in the background, and has said its first word.
fn running(home: &Home, name: &str) {
    home.detached(&["--name", name]);
    home.wait_until("the guest's first word", |home| home.ok(&["logs", name]).contains(READY));
}

/// Type `text`, without o and p, on the console of `name`; its guest is to answer with the same.
fn echoes(home: &Home, name: &str, text: &str) {
    let mut child =
        home.skiff().args(["attach", name]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    home.wait_until("an echo", |home| home.ok(&["logs", name]).contains(text));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// What is wrong with `args`.
fn wrong(home: &Home, args: &[&str]) -> String {
    let done = home.ask(args);
    assert!(matches!(done.code, Some(1 | 2)), "{args:?}: {done:?}");
    done.stderr
}

/// What lies in a part of the data directory, locks aside.
fn left(home: &Home, part: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(home.data().join(part)).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

/// The file of a snapshot that holds its memory's pages.
fn memory_file(home: &Home, vm: &str, snapshot: &str) -> PathBuf {
    let shown = json(&home.ok(&["snapshot", "show", vm, snapshot, "--json"]));
    let dir = Path::new(shown["directory"].as_str().unwrap()).to_owned();
    let manifest = json(&fs::read_to_string(dir.join("manifest.json")).unwrap());
    dir.join(manifest["memory"]["data"].as_str().unwrap())
}

#[test]
fn a_vm_goes_back_to_its_snapshots_while_it_runs_and_after() {
    let Some(home) = Home::new() else { return };
    running(&home, "web");
    let first = home.ok(&["snapshot", "create", "web"]);
    assert!(first.starts_with("s1: paused ") && first.contains(" in "), "{first}");
    echoes(&home, "web", "abc");
    let second = json(&home.ok(&["snapshot", "create", "web", "--comment", "after abc", "--json"]));
    assert_eq!((second["name"].as_str(), second["vm"].as_str()), (Some("s2"), Some("web")));
    assert_eq!(home.ok(&["snapshot", "create", "web", "named", "-q"]), "named\n");
    assert_eq!(home.ok(&["snapshot", "ls", "web", "-q"]), "s1\ns2\nnamed\n");
    let list = home.ok(&["snapshot", "ls", "web"]);
    assert!(list.contains("named *") && list.contains("after abc"), "{list}");

    let pid = home.pid("web");
    let text = home.ok(&["rollback", "web", "s1"]);
    assert!(text.starts_with("web is back at s1, in "), "{text}");
    assert_eq!(home.pid("web"), pid, "it goes on in the same process");
    echoes(&home, "web", "def");
    assert_eq!(home.ok(&["snapshot", "create", "web", "-q"]), "s3\n");
    let tree = home.ok(&["snapshot", "tree", "web"]);
    let lines: Vec<&str> = tree.lines().collect();
    assert!(lines[1].starts_with("└─ s1 ") && lines[2].starts_with("   ├─ s2 "), "{tree}");
    assert!(lines[3].starts_with("   │  └─ named ") && lines[4].starts_with("   └─ s3 "), "{tree}");
    assert!(lines[4].ends_with("the VM is here"), "{tree}");

    home.ok(&["kill", "web"]);
    assert_eq!(home.ok(&["rollback", "web", "s2"]), "web runs, from s2\n");
    echoes(&home, "web", "ghi");
    let events = home.ok(&["events", "--since", "all", "--no-follow", "web"]);
    assert!(events.contains("snapshot s3") && events.contains("rolled-back s1"), "{events}");
    let inspected = json(&home.ok(&["inspect", "--json", "web"]));
    assert_eq!(
        (inspected[0]["snapshot"].as_str(), inspected[0]["snapshots"].as_u64()),
        (Some("s2"), Some(4))
    );

    home.ok(&["rename", "web", "shop"]);
    assert_eq!(home.ok(&["snapshot", "ls", "shop", "-q"]).lines().count(), 4);
    home.ok(&["kill", "shop"]);
    let refused = wrong(&home, &["rm", "shop"]);
    assert!(refused.contains("4 snapshots: skiff rm --snapshots shop"), "{refused}");
    home.ok(&["rm", "--snapshots", "shop"]);
    home.ok(&["system", "prune"]);
    assert_eq!((left(&home, "snapshots"), left(&home, "layers")), (vec![], vec![]));
}

#[test]
fn clones_run_on_their_own_and_outlive_the_vm_they_come_from() {
    let Some(home) = Home::new() else { return };
    running(&home, "web");
    home.ok(&["snapshot", "create", "web", "-q"]);
    assert_eq!(home.ok(&["clone", "web@s1", "-n", "3"]), "web-1\nweb-2\nweb-3\n");
    let cloned = home.ask(&["clone", "web", "--name", "late"]);
    assert_eq!((cloned.code, cloned.stdout.as_str()), (Some(0), "late\n"), "{cloned:?}");
    assert!(cloned.stderr.contains("its snapshot s2 was taken for this"), "{cloned:?}");
    let json_text = home.ok(&["clone", "web@s2", "--json"]);
    assert_eq!(json(&json_text)[0]["name"].as_str(), Some("web-4"));
    for name in ["web-1", "web-2", "web-3", "late", "web"] {
        echoes(&home, name, &format!("<{name}>"));
    }
    assert!(!home.ok(&["logs", "web-1"]).contains("web-2"));
    home.ok(&["rm", "-f", "--snapshots", "web"]);
    home.ok(&["system", "prune"]);
    assert_eq!(home.ok(&["snapshot", "create", "web-1", "-q"]), "s1\n");
    assert!(wrong(&home, &["rollback", "web-2", "s1"]).contains("web-2 has no snapshot 's1'"));
    home.ok(&["rm", "-f", "web-2", "web-3", "web-4", "late"]);
    home.ok(&["system", "prune"]);
    home.ok(&["rollback", "web-1", "s1"]);
    echoes(&home, "web-1", "[first]");
    home.ok(&["kill", "web-1"]);
    home.ok(&["rollback", "web-1", "s1"]);
    echoes(&home, "web-1", "[again]");
    home.ok(&["rm", "-f", "--snapshots", "web-1"]);
    home.ok(&["system", "prune"]);
    assert_eq!((left(&home, "snapshots"), left(&home, "layers")), (vec![], vec![]));
}

#[test]
fn a_throw_away_vm_from_a_snapshot_leaves_nothing() {
    let Some(home) = Home::new() else { return };
    running(&home, "web");
    home.ok(&["snapshot", "create", "web"]);
    let mut child = home
        .skiff()
        .args(["run", "--from", "web@s1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hi all o").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("hi all "), "{output:?}");
    assert_eq!(home.ok(&["ps", "-aq"]), "web\n");
    assert_eq!(home.ok(&["run", "--from", "web@s1", "-d", "--name", "kept"]), "kept\n");
    echoes(&home, "kept", "stays");
    for contradiction in [["--cpus", "2"], ["--memory", "1G"], ["--kernel", "/k"]] {
        let text = wrong(&home, &["run", "--from", "web@s1", contradiction[0], contradiction[1]]);
        assert!(text.contains(&format!("leave out {}", contradiction[0])), "{text}");
    }
}

#[test]
fn an_exported_snapshot_runs_elsewhere_and_a_damaged_one_does_not() {
    let (Some(home), Some(other)) = (Home::new(), Home::new()) else { return };
    running(&home, "web");
    home.ok(&["snapshot", "create", "web", "--comment", "to go"]);
    echoes(&home, "web", "xyz");
    home.ok(&["snapshot", "create", "web"]);
    let file = home.data().join("web.skiff");
    let file = file.to_str().unwrap();
    let said = home.ok(&["snapshot", "export", "web", "s2", file]);
    assert!(said.starts_with("web@s2 is in "), "{said}");
    assert!(wrong(&home, &["snapshot", "export", "web", "s1", file]).contains("choose another name"));

    assert_eq!(other.ok(&["snapshot", "import", file]), "web@s2\n");
    assert_eq!(other.ok(&["snapshot", "import", file]), "web-1@s2\n");
    assert_eq!(other.status("web"), "stopped");
    // The other machine has no file of this one.
    fs::rename(&home.kernel, home.kernel.with_extension("gone")).unwrap();
    assert_eq!(other.ok(&["rollback", "web", "s2"]), "web runs, from s2\n");
    echoes(&other, "web", "there");
    assert_eq!(other.ok(&["clone", "web-1@s2"]), "web-1-1\n");
    echoes(&other, "web-1-1", "its");

    let good = fs::read(file).unwrap();
    let bad = home.data().join("bad.skiff");
    for cut in [0, 10, good.len() / 2, good.len() - 1] {
        fs::write(&bad, &good[..cut]).unwrap();
        let text = wrong(&other, &["snapshot", "import", bad.to_str().unwrap(), "--name", "bad"]);
        assert!(text.contains("bad.skiff"), "{text}");
    }
    for at in [20, good.len() / 2, good.len() - 10] {
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        fs::write(&bad, flipped).unwrap();
        let text = wrong(&other, &["snapshot", "import", bad.to_str().unwrap(), "--name", "bad"]);
        assert!(text.contains("bad.skiff"), "{text}");
    }
    assert_eq!(other.status("bad"), "gone");
    other.ok(&["rm", "-f", "--snapshots", "web", "web-1", "web-1-1"]);
    other.ok(&["system", "prune"]);
    assert_eq!(left(&other, "snapshots"), Vec::<PathBuf>::new());
    assert_eq!(left(&other, "boot"), Vec::<PathBuf>::new());
}

/// Exported by the first version: the guest of these tests, which has said its first word, with a disk of 64 KiB of text.
const FIRST_VERSION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/snapshot-1.skiff");

#[test]
fn a_snapshot_of_the_first_version_is_read_for_ever() {
    let Some(home) = Home::new() else { return };
    assert_eq!(home.ok(&["snapshot", "import", FIRST_VERSION, "--name", "old"]), "old@one\n");
    let shown = json(&home.ok(&["snapshot", "show", "old", "one", "--json"]));
    assert_eq!(
        (shown["comment"].as_str(), shown["memory"].as_u64()),
        (Some("the first version"), Some(73728))
    );
    let layer = shown["layers"][0].as_str().unwrap();
    let raw = home.data().join("disk.raw");
    let raw = raw.to_str().unwrap();
    let converted =
        std::process::Command::new("qemu-img").args(["convert", "-O", "raw", layer, raw]).status();
    assert!(converted.unwrap().success());
    let text = "skiff snapshot fixture, version 1\n".repeat(2000);
    assert!(fs::read(raw).unwrap() == text.as_bytes()[..65536]);

    let started = home.ask(&["rollback", "old", "one"]);
    if started.code == Some(0) {
        echoes(&home, "old", "abc");
        return;
    }
    // It was taken on a processor that this host's is not: that is said, and nothing has happened.
    assert!(started.stderr.contains("processor"), "{started:?}");
    assert_eq!(home.ok(&["snapshot", "ls", "old", "-q"]), "one\n");
}

#[test]
fn damage_is_named_and_changes_nothing() {
    let Some(home) = Home::new() else { return };
    running(&home, "web");
    home.ok(&["snapshot", "create", "web"]);
    let memory = memory_file(&home, "web", "s1");
    let good = fs::read(&memory).unwrap();
    let page = good.iter().position(|byte| *byte != 0).unwrap();
    for damage in 0..3 {
        let mut bad = good.clone();
        match damage {
            0 => bad[page] ^= 1,
            1 => bad.truncate(good.len() - 4096),
            _ => bad.extend([0; 4096]),
        }
        fs::write(&memory, &bad).unwrap();
        for args in [&["rollback", "web", "s1"][..], &["clone", "web@s1"], &["run", "--from", "web@s1"]] {
            let text = wrong(&home, args);
            assert!(text.contains("memory-") && text.contains("is damaged"), "{args:?}: {text}");
        }
    }
    echoes(&home, "web", "alive");
    assert_eq!(home.ok(&["ps", "-aq"]), "web\n");
    fs::write(&memory, &good).unwrap();
    home.ok(&["rollback", "web", "s1"]);
    echoes(&home, "web", "back");

    let manifest = memory.with_file_name("manifest.json");
    let mut text = fs::read(&manifest).unwrap();
    text[40] ^= 1;
    fs::write(&manifest, text).unwrap();
    for args in [&["snapshot", "ls", "web"][..], &["system", "prune"], &["rollback", "web", "s1"]] {
        let text = home.ask(args).stderr;
        assert_eq!(text.matches("manifest.json: it is damaged").count(), 1, "{args:?}: {text}");
    }
    home.ok(&["system", "prune", "-f"]);
    assert_eq!(home.ok(&["snapshot", "ls", "web", "-q"]), "");
    echoes(&home, "web", "still");
}

#[test]
fn a_vm_that_is_killed_leaves_snapshots_and_no_garbage() {
    let Some(home) = Home::new() else { return };
    running(&home, "web");
    home.ok(&["snapshot", "create", "web"]);
    let mut child = home.skiff();
    child.args(["run", "--from", "web@s1"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = child.spawn().unwrap();
    home.wait_until("a second VM", |home| home.ok(&["ps", "-q"]).lines().count() == 2);
    let names = home.ok(&["ps", "-q"]);
    let throw_away = names.lines().find(|name| *name != "web").unwrap();
    for name in [throw_away, "web"] {
        kill_process(Pid::from_raw(home.pid(name)).unwrap(), Signal::KILL).unwrap();
    }
    wait(&mut child);
    home.wait_until("the end of both", |home| home.ok(&["ps", "-q"]).is_empty());
    assert_eq!(home.ok(&["ps", "-aq"]), "web\n");
    home.ok(&["system", "prune"]);
    assert_eq!(
        home.ok(&["system", "prune", "--dry-run"]),
        "would free 0 B: snapshots 0, layers 0, images 0\n"
    );
    home.ok(&["rollback", "web", "s1"]);
    echoes(&home, "web", "risen");
}

#[test]
fn wrong_names_and_unknown_ones_are_told_the_fix() {
    let Some(home) = Home::new() else { return };
    running(&home, "web");
    home.ok(&["snapshot", "create", "web", "first"]);
    for (args, message) in [
        (&["snapshot", "create", "web", "first"][..], "has a snapshot 'first' already"),
        (&["snapshot", "create", "web", "a@b"], "cannot be a snapshot's name"),
        (&["snapshot", "create", "web", "0123456789abcdef"], "looks like an id"),
        (&["rollback", "web", "frist"], "did you mean 'first'?"),
        (&["snapshot", "rm", "web", "zzz"], "skiff snapshot ls web shows them"),
        (&["clone", "web@"], "cannot be a snapshot's name"),
        (&["clone", "nobody"], "there is no VM 'nobody'"),
        (&["clone", "web@first", "--name", "a@b"], "cannot be a VM's name"),
        (&["clone", "web@first", "-n", "0"], "is no number from 1 to 1000"),
        (&["clone", "web", "--name", "web"], "there is a VM 'web' already"),
        (&["run", "--from", "web", "--name", "web"], "there is a VM 'web' already"),
        (&["run", "--keep", "--kernel", "/k"], "--keep goes with --from"),
        (&["run", "--from", "web", "--keep", "--rm"], "--keep and --rm exclude each other"),
    ] {
        let text = wrong(&home, args);
        assert!(text.contains(message), "{args:?}: {text}");
    }
    assert_eq!(home.ok(&["snapshot", "ls", "web", "-q"]), "first\n");
    home.ok(&["kill", "web"]);
    assert!(wrong(&home, &["snapshot", "create", "web"]).contains("skiff start web"));
    // One data directory is for the VMs of one state directory.
    let elsewhere = home.data().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let refused = done(home.skiff().env("XDG_STATE_HOME", &elsewhere).args(["system", "prune"]));
    assert!(refused.code == Some(1) && refused.stderr.contains("set XDG_DATA_HOME"), "{refused:?}");
    assert_eq!(home.ok(&["snapshot", "ls", "web", "-q"]), "first\n");
}

#[test]
fn what_is_removed_is_freed_and_what_is_needed_stays() {
    let Some(home) = Home::new() else { return };
    running(&home, "web");
    for text in ["a1", "b2", "c3"] {
        echoes(&home, "web", text);
        home.ok(&["snapshot", "create", "web"]);
    }
    let df = json(&home.ok(&["system", "df", "--json"]));
    assert_eq!((df["vms"]["count"].as_u64(), df["snapshots"]["count"].as_u64()), (Some(1), Some(3)));
    assert!(df["snapshots"]["size"].as_u64() > Some(0), "{df}");
    assert_eq!(home.ok(&["snapshot", "rm", "--wait", "web", "s2"]), "s2\n");
    assert_eq!(home.ok(&["snapshot", "ls", "web", "-q"]), "s1\ns3\n");
    assert_eq!(left(&home, "snapshots").len(), 2);
    home.ok(&["rollback", "web", "s3"]);
    echoes(&home, "web", "d4");
    home.ok(&["kill", "web"]);
    assert_eq!(home.ok(&["snapshot", "rm", "--with-children", "--wait", "web", "s1"]), "s3\ns1\n");
    assert_eq!(left(&home, "snapshots"), Vec::<PathBuf>::new());
    home.ok(&["start", "web"]);
}

#[test]
fn a_disk_is_never_written_and_its_layers_come_and_go_with_what_needs_them() {
    let Some(home) = Home::new() else { return };
    let disk = home.data().with_file_name("base.img");
    fs::create_dir_all(disk.parent().unwrap()).unwrap();
    fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let path = format!("path={}", disk.display());
    home.detached(&["--name", "web", "--disk", &path]);
    home.wait_until("the guest's first word", |home| home.ok(&["logs", "web"]).contains(READY));
    assert_eq!(left(&home, "layers").len(), 1);
    home.ok(&["snapshot", "create", "web"]);
    home.ok(&["snapshot", "create", "web"]);
    assert_eq!(left(&home, "layers").len(), 3);
    let shown = json(&home.ok(&["inspect", "--json", "web"]));
    let top = shown[0]["layers"][0].as_str().unwrap();
    assert!(left(&home, "layers").contains(&PathBuf::from(top)), "{top}");
    home.ok(&["clone", "web@s1", "-n", "2"]);
    assert_eq!(left(&home, "layers").len(), 5);
    home.ok(&["rm", "-f", "web-2"]);
    assert_eq!(left(&home, "layers").len(), 4);
    for _ in 0..5 {
        home.ok(&["rollback", "web", "s2"]);
    }
    assert_eq!(left(&home, "layers").len(), 4);
    let file = disk.with_file_name("web.skiff");
    home.ok(&["snapshot", "export", "web", "s2", file.to_str().unwrap()]);
    home.ok(&["snapshot", "rm", "--wait", "web", "s1"]);
    // What web-1 and s2 have in common of it is still there.
    assert_eq!(left(&home, "layers").len(), 4);
    home.ok(&["rm", "-f", "web-1"]);
    home.ok(&["system", "prune"]);
    assert_eq!((left(&home, "layers").len(), left(&home, "snapshots").len()), (2, 1));
    home.ok(&["rollback", "web", "s2"]);
    home.ok(&["rm", "-f", "--snapshots", "web"]);
    home.ok(&["system", "prune"]);
    assert_eq!((left(&home, "layers"), left(&home, "snapshots")), (vec![], vec![]));

    fs::rename(&disk, disk.with_extension("gone")).unwrap();
    home.ok(&["snapshot", "import", file.to_str().unwrap()]);
    home.ok(&["rollback", "web", "s2"]);
    echoes(&home, "web", "there");
    home.ok(&["kill", "web"]);
    home.ok(&["start", "web"]);
    home.ok(&["rm", "-f", "--snapshots", "web"]);
    home.ok(&["system", "prune"]);
    assert_eq!((left(&home, "layers"), left(&home, "boot")), (vec![], vec![]));
    assert_eq!(fs::read(disk.with_extension("gone")).unwrap(), vec![7; 1 << 20]);
}

#[test]
fn a_disk_that_is_written_in_place_stands_in_the_way_of_a_snapshot() {
    let Some(home) = Home::new() else { return };
    let disk = home.data().with_file_name("base.img");
    fs::create_dir_all(disk.parent().unwrap()).unwrap();
    fs::write(&disk, vec![7; 1 << 20]).unwrap();
    home.detached(&["--name", "web", "--disk", &format!("path={},layers=off", disk.display())]);
    let refused = wrong(&home, &["snapshot", "create", "web"]);
    assert!(refused.contains("layers=on"), "{refused}");
    assert_eq!(left(&home, "snapshots"), Vec::<PathBuf>::new());
}
