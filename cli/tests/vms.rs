//! Managing VMs as a user does, with a tiny guest on /dev/kvm: `run -d` and every verb after it, and what is left when
//! processes are killed. Without a usable /dev/kvm these tests say so and pass.

mod support;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use support::{Home, READY, done, wait};

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// Wait until the guest has said its first word.
fn ready(home: &Home, name: &str) {
    home.wait_until("the guest's first word", |home| home.ok(&["logs", name]).contains(READY));
}

/// Type `text` on the console of `name` from a pipe, and wait until it has ended. Says the exit code.
fn type_to_the_end(home: &Home, name: &str, text: &[u8]) -> Option<i32> {
    let mut child =
        home.skiff().args(["attach", name]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text).unwrap();
    wait(&mut child).code()
}

#[test]
fn a_vm_lives_from_run_to_rm() {
    let Some(home) = Home::new() else { return };
    assert_eq!(home.detached(&["--name", "web"]), "web");
    ready(&home, "web");
    assert_eq!(home.ok(&["ps", "-q"]), "web\n");
    assert!(home.ok(&["ps"]).contains("Running"));
    let again = done(home.run().args(["-d", "--name", "web"]));
    assert_eq!(again.code, Some(1));
    assert!(again.stderr.contains("there is a VM 'web' already"), "{again:?}");
    let refused = home.ask(&["rm", "web"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("skiff stop web"), "{refused:?}");

    assert_eq!(type_to_the_end(&home, "web", b"first o"), Some(0));
    let vm = home.ps("web").unwrap();
    assert_eq!(
        (vm["status"].as_str(), vm["exit_code"].as_u64(), vm["pid"].as_i64()),
        (Some("stopped"), Some(0), None)
    );
    assert_eq!(home.ok(&["ps", "-q"]), "");
    assert_eq!(home.ok(&["wait", "web"]), "0\n");
    assert!(home.ask(&["stop", "web"]).stderr.contains("web is not running"));
    assert_eq!(home.ask(&["kill", "web"]).code, Some(1));

    assert_eq!(home.ok(&["start", "web"]), "web\n");
    assert!(home.ask(&["start", "web"]).stderr.contains("web runs already"));
    home.wait_until("a second start", |home| home.ok(&["logs", "web"]) == "Rfirst R");
    assert_eq!(home.ok(&["logs", "--tail", "1", "web"]), "Rfirst R");
    assert_eq!(home.ok(&["rename", "web", "shop"]), "");
    assert_eq!(home.ok(&["kill", "shop"]), "shop\n");
    assert_eq!((home.status("web").as_str(), home.status("shop").as_str()), ("gone", "killed"));
    assert_eq!(home.ok(&["rm", "shop"]), "shop\n");
    assert_eq!(home.ok(&["ps", "-aq"]), "");
    assert!(home.ask(&["rm", "shop"]).stderr.contains("there is no VM 'shop'"));
}

#[test]
fn what_happened_is_told_as_json_lines() {
    let Some(home) = Home::new() else { return };
    home.detached(&["--name", "a"]);
    let mut follower = home
        .skiff()
        .args(["events", "--json", "--since", "all", "a"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    home.detached(&["--name", "b"]);
    kill(home.pid("a"));
    let lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let seen: Vec<serde_json::Value> = lines
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .take_while(|event: &serde_json::Value| event["event"] != "stopped")
        .collect();
    assert_eq!(seen[0]["event"], "started");
    assert!(
        seen.iter().all(|event| event["vm"] == "a" && event["time"].as_str().unwrap().ends_with('Z')),
        "{seen:?}"
    );
    follower.kill().unwrap();
    follower.wait().unwrap();
    // Noticed by many, told once.
    for _ in 0..3 {
        assert_eq!(home.status("a"), "killed");
    }
    let past = home.ok(&["events", "--no-follow", "a"]);
    assert_eq!(past.matches("stopped (crashed)").count(), 1, "{past}");
}

#[test]
fn a_vm_that_does_not_stop_is_killed_and_that_is_said() {
    let Some(home) = Home::new() else { return };
    home.detached(&["--name", "deaf"]);
    home.detached(&["--name", "hung"]);
    // A process that answers nothing at all.
    kill_process(Pid::from_raw(home.pid("hung")).unwrap(), Signal::STOP).unwrap();
    let stop = home.ask(&["stop", "--timeout", "1", "deaf"]);
    assert_eq!((stop.code, stop.stdout.as_str()), (Some(0), "deaf\n"), "{stop:?}");
    assert!(stop.stderr.contains("deaf did not stop within 1 s; killed"), "{stop:?}");
    assert_eq!(home.ok(&["rm", "-f", "hung"]), "hung\n");
    assert_eq!(home.ok(&["ps", "-aq"]), "deaf\n");
    assert_eq!(home.ask(&["wait", "deaf"]).code, Some(137));
}

#[test]
fn a_guest_that_panics_is_told_by_ps_wait_and_attach() {
    let Some(home) = Home::new() else { return };
    home.detached(&["--name", "a"]);
    assert_eq!(type_to_the_end(&home, "a", b"BUG!\np"), Some(3));
    assert_eq!(home.status("a"), "panicked");
    let wait = home.ask(&["wait", "a"]);
    assert_eq!((wait.code, wait.stdout.as_str()), (Some(3), "3\n"));
    let all: serde_json::Value = serde_json::from_str(&home.ok(&["inspect", "--json", "a"])).unwrap();
    assert_eq!(all[0]["last_lines"][0], "RBUG!");
    assert_eq!(all[0]["spec"]["memory"], "64M");
}

#[test]
fn a_throw_away_vm_is_listed_while_it_runs_and_gone_after() {
    let Some(home) = Home::new() else { return };
    let mut front = home.run().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut word = [0; 1];
    front.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
    home.wait_until("an entry", |home| !home.ok(&["ps", "-q"]).is_empty());
    front.stdin.take().unwrap().write_all(b"o").unwrap();
    assert_eq!(wait(&mut front).code(), Some(0));
    assert_eq!(home.ok(&["ps", "-aq"]), "");
    let name = home.detached(&["--rm"]);
    home.ok(&["kill", &name]);
    assert_eq!(home.ok(&["ps", "-aq"]), "");
}

#[test]
fn killed_front_ends_leave_named_vms_and_take_their_own_along() {
    let Some(home) = Home::new() else { return };
    for (args, status) in [(&["--name", "kept"][..], "running"), (&[][..], "gone")] {
        let mut front = home.run().args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut word = [0; 1];
        front.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
        home.wait_until("an entry", |home| {
            home.ok(&["ps", "-aq"]).lines().count() > usize::from(args.is_empty())
        });
        front.kill().unwrap();
        front.wait().unwrap();
        let names = home.ok(&["ps", "-aq"]);
        let name = names.lines().find(|name| args.is_empty() != (*name == "kept")).map(str::to_owned);
        match name {
            Some(name) => home.wait_until("what is to happen", |home| home.status(&name) == status),
            None => assert_eq!(status, "gone"),
        }
    }
    assert_eq!(home.ok(&["kill", "kept"]), "kept\n");
}

#[test]
fn whatever_is_killed_and_whenever_the_store_stays_clean() {
    let Some(home) = Home::new() else { return };
    for (at, delay) in [0_u64, 200, 500, 1000, 2000, 3000, 5000, 8000, 12_000, 20_000].into_iter().enumerate()
    {
        let name = format!("vm{at}");
        let mut front = home.run();
        front.args(if at % 2 == 0 { vec!["-d"] } else { vec![] }).args(["--name", &name]);
        let mut front =
            front.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(delay));
        // Front end and VM, in either order. One that is stopped starts no process unseen.
        kill_process(Pid::from_child(&front), Signal::STOP).unwrap();
        home.wait_until("a stop", |_| is_stopped(front.id()));
        let vms = match front.try_wait().unwrap() {
            None => children(front.id()),
            // With -d it may have done its work: the VM is nobody's child now.
            Some(_) => home
                .ps(&name)
                .and_then(|vm| vm["pid"].as_i64())
                .map(|pid| pid.try_into().unwrap())
                .into_iter()
                .collect(),
        };
        if at % 3 == 0 {
            vms.iter().for_each(|pid| kill(*pid));
        }
        let _ = front.kill();
        front.wait().unwrap();
        vms.into_iter().for_each(|pid| _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL));
        home.wait_until("a clean end", |home| ["gone", "killed"].contains(&home.status(&name).as_str()));
        if home.status(&name) == "killed" {
            assert_eq!(home.ok(&["rm", &name]), format!("{name}\n"));
        }
        // The name is free again.
        assert_eq!(home.detached(&["--name", &name]), name);
        home.ok(&["rm", "-f", &name]);
    }
    assert_eq!(fs::read_dir(home.store().join("vms")).unwrap().count(), 0);
}

fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    [") T ", ") Z "].iter().any(|state| stat.contains(state))
}

/// The processes that `pid` has started.
fn children(pid: u32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn twenty_at_once_have_twenty_names() {
    let Some(home) = Home::new() else { return };
    let start = || home.run().arg("-d").stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let starting: Vec<_> = (0..20).map(|_| start()).collect();
    let mut names: Vec<String> = starting
        .into_iter()
        .map(|mut child| {
            assert_eq!(wait(&mut child).code(), Some(0));
            let mut name = String::new();
            child.stdout.take().unwrap().read_to_string(&mut name).unwrap();
            name.trim_end().to_owned()
        })
        .collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 20);
    assert_eq!(home.ok(&["ps", "-q"]).lines().collect::<Vec<_>>(), names);
    let mut args = vec!["rm", "-f"];
    args.extend(names.iter().map(String::as_str));
    assert_eq!(home.ok(&args).lines().count(), 20);
    assert_eq!(home.ok(&["ps", "-aq"]), "");
}

#[test]
fn one_of_many_gets_a_name() {
    let Some(home) = Home::new() else { return };
    let mut starting: Vec<_> = (0..8)
        .map(|_| {
            let mut command = home.run();
            command
                .args(["-d", "--name", "same"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command.spawn().unwrap()
        })
        .collect();
    let won = starting.iter_mut().filter_map(|child| wait(child).code()).filter(|code| *code == 0).count();
    assert_eq!((won, home.status("same").as_str()), (1, "running"));
}

#[test]
fn files_that_cannot_be_read_are_shown_and_can_be_removed() {
    let Some(home) = Home::new() else { return };
    for (name, file, content) in [
        ("cut", "state.json", "{\"format\": 1, \"crea"),
        ("new", "state.json", "{\"format\": 99}"),
        ("odd", "spec.toml", "kernel = "),
    ] {
        home.detached(&["--name", name]);
        home.ok(&["kill", name]);
        fs::write(home.store().join("vms").join(name).join(file), content).unwrap();
        let vm = home.ps(name).unwrap();
        assert!(vm["status"] == "broken" && vm["error"].as_str().unwrap().starts_with(file), "{vm}");
        assert!(home.ask(&["start", name]).stderr.contains("skiff rm -f"), "{name}");
        assert_eq!(home.ask(&["rm", name]).code, Some(1));
    }
    home.detached(&["--name", "well"]);
    assert!(home.ok(&["ps", "-a"]).contains("written by a newer skiff"));
    assert_eq!(home.ok(&["ps", "-q"]), "well\n");
    assert_eq!(home.ok(&["rm", "-f", "cut", "new", "odd"]), "cut\nnew\nodd\n");
}

#[test]
fn a_vm_from_before_the_host_went_down_is_lost_and_can_be_started() {
    let Some(home) = Home::new() else { return };
    home.detached(&["--name", "a"]);
    kill(home.pid("a"));
    let state = home.store().join("vms/a/state.json");
    home.wait_until("an end", |home| home.status("a") == "killed");
    // As it would have been left by a host that went down.
    let mut text: serde_json::Value = serde_json::from_reader(File::open(&state).unwrap()).unwrap();
    let object = text.as_object_mut().unwrap();
    object.remove("end");
    object.remove("finished");
    object.insert("boot_id".to_owned(), "another".into());
    fs::write(&state, text.to_string()).unwrap();
    assert_eq!(home.status("a"), "lost");
    assert!(home.ok(&["ps", "-a"]).contains("Lost (host rebooted)"));
    home.ok(&["start", "a"]);
    assert_eq!(home.status("a"), "running");
}

#[test]
fn a_spec_that_cannot_be_run_leaves_nothing_and_says_why() {
    let Some(home) = Home::new() else { return };
    let failed = done(home.skiff().args(["run", "-d", "--name", "a", "--kernel", "/none"]));
    assert_eq!((failed.code, failed.stdout.as_str()), (Some(1), ""));
    assert!(failed.stderr.starts_with("skiff: error: the kernel /none does not exist"), "{failed:?}");
    assert_eq!(home.ok(&["ps", "-aq"]), "");
    home.detached(&["--name", "b"]);
    home.ok(&["kill", "b"]);
    fs::remove_file(&home.kernel).unwrap();
    assert_eq!(home.ask(&["start", "b"]).code, Some(1));
    let vm = home.ps("b").unwrap();
    assert!(vm["status"] == "failed" && vm["error"].as_str().unwrap().contains("does not exist"), "{vm}");
}

#[test]
fn a_long_path_and_a_closed_directory() {
    let Some(home) = Home::new() else { return };
    let deep = home.store().join("d".repeat(100)).join("e".repeat(100));
    let in_deep = |args: &[&str]| {
        let mut command = home.skiff();
        command.args(args).env("XDG_STATE_HOME", &deep).env("XDG_DATA_HOME", &deep);
        command
    };
    let kernel = home.kernel.to_str().unwrap();
    let run = ["run", "-d", "--name", "a", "--memory", "64M", "--kernel", kernel];
    assert_eq!(done(&mut in_deep(&run)).stdout, "a\n");
    let mode = fs::metadata(deep.join("skiff/vms/a")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let pressed = done(&mut in_deep(&["stop", "-t", "1", "a"]));
    assert!(pressed.code == Some(0) && pressed.stderr.contains("did not stop"), "{pressed:?}");
}

#[test]
fn logs_follow_to_the_end_of_the_vm() {
    let Some(home) = Home::new() else { return };
    home.detached(&["--name", "a"]);
    ready(&home, "a");
    let mut follower = home.skiff().args(["logs", "-f", "a"]).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(type_to_the_end(&home, "a", b"abc\nxyz\no"), Some(0));
    assert_eq!(wait(&mut follower).code(), Some(0));
    let mut seen = String::new();
    follower.stdout.take().unwrap().read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "Rabc\nxyz\n");
    assert_eq!(home.ok(&["logs", "-n", "1", "a"]), "xyz\n");
}

#[test]
fn what_follows_ends_with_its_reader() {
    let Some(home) = Home::new() else { return };
    home.detached(&["--name", "a"]);
    for follow in [&["logs", "-f", "a"][..], &["events", "--since", "all"]] {
        let mut child = home.skiff().args(follow).stdout(Stdio::piped()).spawn().unwrap();
        let mut first = [0];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        assert_eq!(wait(&mut child).code(), Some(0), "{follow:?}");
    }
}

#[test]
fn nothing_of_a_test_outlives_it() {
    let Some(home) = Home::new() else { return };
    home.detached(&["--name", "a"]);
    let pid = home.pid("a");
    // As if the store knew nothing of it yet.
    fs::remove_dir_all(home.store()).unwrap();
    drop(home);
    // Empty once it has ended, whether or not somebody has waited for it.
    assert!(!fs::read(format!("/proc/{pid}/environ")).is_ok_and(|left| !left.is_empty()));
}

#[test]
fn what_a_vm_in_the_background_does_is_in_its_log() {
    let Some(home) = Home::new() else { return };
    home.detached(&["--name", "a", "--verbose"]);
    let log = home.store().join("vms/a/vm.log");
    let said = |text: &str| fs::read_to_string(&log).unwrap().contains(text);
    home.wait_until("a line at the start", |_| said("INFO") && said("a runs: kernel /"));
    home.ok(&["kill", "a"]);
    home.wait_until("a line at the end", |_| said("the VM has ended"));
}
