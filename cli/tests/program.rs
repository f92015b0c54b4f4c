//! The built program as a user meets it, as far as that needs no /dev/kvm: help, dry runs, errors and exit codes.

use std::path::Path;
use std::process::{Command, Output};

fn skiff(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_skiff"))
        .args(args)
        .current_dir(dir)
        .env_remove("SKIFF_LOG")
        .output()
        .unwrap()
}

/// Exit code, stdout and stderr.
fn outcome(args: &[&str]) -> (i32, String, String) {
    let output = skiff(Path::new("/"), args);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn help_goes_to_stdout_and_is_no_error() {
    for args in [&["--help"][..], &["run", "--help"], &["run", "-h"], &["--version"]] {
        let (code, stdout, stderr) = outcome(args);
        assert_eq!((code, stderr.as_str()), (0, ""), "{args:?}");
        assert!(stdout.contains("skiff"), "{args:?}: {stdout}");
    }
    assert!(outcome(&["run", "--help"]).1.contains("Exit codes:"));
}

#[test]
fn wrong_usage_is_exit_code_2_and_says_the_fix() {
    for (args, message) in [
        (&["run", "--kernle", "k"][..], "a similar argument exists: '--kernel'"),
        (&["runn"], "a similar subcommand exists: 'run'"),
        (&["run", "--kernel"], "a value is required for '--kernel <FILE>'"),
        (&["run"], "skiff: error: no image and no kernel: name an image, as in skiff run debian:12"),
        (&["run", "--kernel", "k", "--cpus", "65"], "skiff: error: cpus cannot be 65: a VM has 1 to 64"),
    ] {
        let (code, stdout, stderr) = outcome(args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {stderr}");
        assert!(stderr.starts_with("skiff: error: ") && stderr.contains(message), "{args:?}: {stderr}");
    }
}

#[test]
fn a_file_that_is_missing_or_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vm.toml");
    let run = || skiff(dir.path(), &["run", "--config", "vm.toml", "--dry-run"]);
    let missing = run();
    assert_eq!(missing.status.code(), Some(1));
    let wanted =
        format!("skiff: error: cannot read {}: No such file or directory (os error 2)\n", file.display());
    assert_eq!(String::from_utf8_lossy(&missing.stderr), wanted);
    std::fs::write(&file, "kernel = \"k\"\ncpu = 2\n").unwrap();
    let wrong = run();
    assert_eq!(wrong.status.code(), Some(2));
    let wanted = format!("skiff: error: {}:2: there is no key 'cpu': did you mean 'cpus'?\n", file.display());
    assert_eq!(String::from_utf8_lossy(&wrong.stderr), wanted);
}

#[test]
fn a_dry_run_fed_back_prints_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["run", "--kernel", "k", "--disk", "path=d,readonly=on", "--serial", "file=s", "--dry-run"];
    let first = skiff(dir.path(), &args);
    assert!(first.status.success(), "{first:?}");
    let file = dir.path().join("elsewhere.toml");
    std::fs::write(&file, &first.stdout).unwrap();
    let again = skiff(Path::new("/"), &["run", "--config", file.to_str().unwrap(), "--dry-run"]);
    assert_eq!(String::from_utf8_lossy(&again.stdout), String::from_utf8_lossy(&first.stdout));
    assert!(again.stderr.is_empty() && first.stderr.is_empty());
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_skiff"));
    let status = command.args(["run", "--kernel", "k", "--dry-run"]).stdout(writer).status().unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn doctor_says_the_same_in_lines_and_in_json_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let doctor = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skiff"));
        command.arg("doctor").args(args).env("XDG_STATE_HOME", dir.path()).output().unwrap()
    };
    let (lines, json) = (doctor(&[]), doctor(&["--json"]));
    let findings: Vec<serde_json::Value> = serde_json::from_slice(&json.stdout).unwrap();
    let text = String::from_utf8(lines.stdout).unwrap();
    assert_eq!(text.lines().count(), findings.len(), "{text}");
    for (line, finding) in text.lines().zip(&findings) {
        let word = |key: &str| finding[key].as_str().unwrap().to_owned();
        assert!(line.starts_with(&format!("{}\t{}\t", word("status"), word("check"))), "{line}");
        assert_eq!(finding["fix"].is_null(), word("status") == "ok", "{line}");
    }
    assert!(findings.iter().any(|finding| finding["check"] == "kvm"));
    let fails = findings.iter().any(|finding| finding["status"] == "fail");
    assert_eq!(json.status.code(), Some(i32::from(fails)));
    assert_eq!(lines.status.code(), Some(i32::from(fails)));
    assert_eq!(dir.path().read_dir().unwrap().count(), 0);
}

#[test]
fn doctor_fails_where_no_vm_can_be_kept() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skiff"));
    let output = command.arg("doctor").env("XDG_STATE_HOME", "/proc/nothing").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stdout).unwrap().contains("fail\tstate\tcannot write to /proc: "));
}
