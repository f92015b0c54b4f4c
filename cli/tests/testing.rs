//! `skiff test` as far as it comes without a guest that has an agent: what is wrong is said before anything is done, and what skiff cannot do is
//! told from tests that fail.

mod support;

use std::fs;

use support::Home;

#[test]
fn a_mistake_is_named_with_its_place_and_its_fix_and_nothing_is_tried() {
    let Some(home) = Home::new() else { return };
    let dir = home.data().with_file_name("app");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("skiff-test.toml");
    let file = path.to_str().unwrap();
    for (text, line, words) in [
        ("on = ['debian:12']\ncomand = 'x'\n", 2, "there is no key 'comand': did you mean 'command'?"),
        ("command = 'x'\n[matrix]\ncpu = [1]\n", 3, "did you mean 'cpus'?"),
        ("on = ['debian:12']\ncommand = 'x'\ntimeout = 5\n", 3, "invalid type"),
        ("[[setup]]\ncopy = ['../secret', '/srv']\n", 2, "not in the file's directory"),
    ] {
        fs::write(&path, text).unwrap();
        let done = home.ask(&["test", "-f", file]);
        assert_eq!(done.code, Some(2), "{done:?}");
        let place = format!("skiff: error: {file}:{line}: ");
        assert!(done.stderr.starts_with(&place) && done.stderr.contains(words), "{text:?}: {done:?}");
    }
    fs::write(&path, "on = ['debian:12']\n").unwrap();
    let out = dir.join("out");
    let out = out.to_str().unwrap();
    for (args, words) in [
        (&["test", "-f", file][..], "no command"),
        (&["test", "--on", "debian:12"], "no command"),
        (&["test", "--", "true"], "no images"),
        (&["test", "-f", file, "--filter", "none", "--", "true"], "no test is left"),
        (&["test", "-f", file, "--flaky", "2", "--retry", "1", "--", "true"], "exclude each other"),
        (&["test", "-f", file, "--jobs", "0", "--", "true"], "--jobs: '0'"),
        (&["test", "-f", file, "-v", "/no/such:/x", "--", "true"], "/no/such does not exist"),
        (&["test", "-f", "/no/such.toml", "--", "true"], "cannot read /no/such.toml"),
        (&["test", "-f", file, "-o", out, "--junit", "/no/such/x", "--", "true"], "cannot write /no/such/x"),
    ] {
        let done = home.ask(args);
        assert!(done.code == Some(2) && done.stderr.contains(words), "{args:?}: {done:?}");
    }
    assert!(!home.data().join("images").exists(), "nothing was tried");
}

#[test]
fn the_tests_of_a_matrix_are_listed_as_patterns_choose_them() {
    let Some(home) = Home::new() else { return };
    let path = home.data().with_file_name("matrix.toml");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let text = "on = ['a:1', 'b:1']\ncommand = 'x'\n[matrix]\ncpus = [1, 2]\nmemory = ['1G']\n";
    fs::write(&path, text).unwrap();
    let file = path.to_str().unwrap();
    let done = home.ask(&["test", "-f", file, "--list"]);
    assert_eq!(done.stdout, "a:1 cpus=1\na:1 cpus=2\nb:1 cpus=1\nb:1 cpus=2\n", "{done:?}");
    let done = home.ask(&["test", "-f", file, "--list", "--filter", "b:*", "--exclude", "cpus=2"]);
    assert_eq!(done.stdout, "b:1 cpus=1\n", "{done:?}");
}

#[test]
fn what_skiff_cannot_do_is_an_error_and_no_failure_and_is_in_every_report() {
    let Some(home) = Home::new() else { return };
    let dir = home.data().with_file_name("results");
    let (out, xml) = (dir.to_str().unwrap(), dir.with_extension("xml"));
    let id = format!("sha256:{}", "0".repeat(64));
    let done = home.ask(&[
        "test",
        "--on",
        &id,
        "-o",
        out,
        "--json",
        "-",
        "--junit",
        xml.to_str().unwrap(),
        "--",
        "true",
    ]);
    assert_eq!(done.code, Some(125), "{done:?}");
    assert!(
        done.stdout.contains("\"verdict\": \"error\"") && done.stdout.contains("\"errors\": 1"),
        "{done:?}"
    );
    assert!(done.stderr.contains("1 test: 1 in error"), "{done:?}");
    let xml = fs::read_to_string(xml).unwrap();
    assert!(xml.contains("errors=\"1\"") && xml.contains("<error "), "{xml}");
    assert_eq!(fs::read_to_string(dir.join(".gitignore")).unwrap(), "*\n");
}
