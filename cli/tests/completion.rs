//! What a shell completes with the script of `skiff completions`, and the manual pages.

use std::path::Path;
use std::process::Command;

/// Completes the last of its arguments as bash does, and prints what bash would offer.
const BASH: &str = r#"
source <(skiff completions bash)
COMP_WORDS=(skiff "$@")
COMP_CWORD=$#
COMP_TYPE=9
function=$(complete -p skiff | sed 's/.*-F \([^ ]*\) .*/\1/')
$function skiff "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\n' "${COMPREPLY[@]}"
"#;

/// What bash offers after `skiff` and `words`, in `dir`.
fn offered(dir: &Path, words: &[&str]) -> Vec<String> {
    let program = Path::new(env!("CARGO_BIN_EXE_skiff")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["--norc", "-c", BASH, "bash"])
        .args(words)
        .current_dir(dir)
        .env("PATH", path)
        .env("XDG_STATE_HOME", dir)
        .env("XDG_DATA_HOME", dir.join("data"))
        .output()
        .unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_verbs_flags_values_and_files() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("vmlinuz"), "").unwrap();
    let here = |words: &[&str]| offered(dir.path(), words);
    assert_eq!(here(&["ru"]), ["run"]);
    assert_eq!(here(&["run", "--mem"]), ["--memory"]);
    assert_eq!(here(&["run", "--transport", ""]), ["pci", "mmio"]);
    assert_eq!(here(&["run", "--kernel", "vm"]), ["vmlinuz"]);
    assert_eq!(here(&["completions", "z"]), ["zsh"]);
    assert_eq!(here(&["man", "comp"]), ["completions"]);
    assert!(here(&[""]).contains(&"run".to_owned()));
}

#[test]
fn bash_completes_the_names_of_vms() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["calm-fox", "brave-otter"] {
        std::fs::create_dir_all(dir.path().join("skiff/vms").join(name)).unwrap();
    }
    let here = |words: &[&str]| offered(dir.path(), words);
    assert_eq!(here(&["logs", "br"]), ["brave-otter"]);
    assert_eq!(here(&["rm", "brave-otter", "c"]), ["calm-fox"]);
    // None of them runs.
    assert_eq!(here(&["start", "c"]), ["calm-fox"]);
    assert_eq!(here(&["stop", "c"]), [""]);
    let before = std::fs::read_dir(dir.path().join("skiff/vms")).unwrap().count();
    assert_eq!(before, 2, "to complete is to look, and not to settle");
}

#[test]
fn bash_completes_groups() {
    let dir = tempfile::tempdir().unwrap();
    let here = |words: &[&str]| offered(dir.path(), words);
    assert_eq!(here(&["snap"]), ["snapshot"]);
    assert_eq!(here(&["snapshot", "cr"]), ["create"]);
    assert_eq!(here(&["snapshot", "rm", "--wi"]), ["--with-children"]);
    assert_eq!(here(&["system", "pr"]), ["prune"]);
}

#[test]
fn every_shell_gets_a_script_that_asks_skiff() {
    for shell in ["bash", "fish", "zsh"] {
        let output = Command::new(env!("CARGO_BIN_EXE_skiff")).args(["completions", shell]).output().unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && script.contains("SKIFF_COMPLETE"), "{shell}: {script}");
        // A shell that is not here cannot be asked whether it understands its script.
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), script).unwrap();
        if let Ok(output) = Command::new(shell).arg("-n").arg(file.path()).output() {
            assert!(output.status.success(), "{shell}: {output:?}");
        }
    }
}

#[test]
fn the_manual_is_written_for_packagers() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man1");
    let status = Command::new(env!("CARGO_BIN_EXE_skiff")).args(["man", "--dir"]).arg(&pages).status();
    assert!(status.unwrap().success());
    for name in ["skiff.1", "skiff-run.1", "skiff-man.1", "skiff-snapshot.1", "skiff-snapshot-create.1"] {
        assert!(std::fs::read_to_string(pages.join(name)).unwrap().contains(".TH "), "{name}");
    }
    let run = Command::new(env!("CARGO_BIN_EXE_skiff")).args(["man", "run"]).output().unwrap();
    assert_eq!(run.stdout, std::fs::read(pages.join("skiff-run.1")).unwrap());
}
