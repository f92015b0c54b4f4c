//! `skiff image build -f FILE`: what is wrong with a file is said with its line, before anything is done.

mod support;

use std::fs;

use support::Home;

#[test]
fn a_mistake_in_a_file_is_named_with_its_line_and_its_fix() {
    let Some(home) = Home::new() else { return };
    let dir = home.data().with_file_name("web");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("web.toml");
    let file = path.to_str().unwrap();
    for (text, line, words) in [
        ("bsae = 'debian:12'\n", 1, "there is no key 'bsae': did you mean 'base'?"),
        ("base = 'debian:12'\n[[step]]\nrun = 'x'\nevn = {}\n", 4, "did you mean 'env'?"),
        (
            "base = 'debian:12'\n[[step]]\nrun = 'x'\ncwd = '/'\n",
            4,
            "there are run, env, user, workdir, timeout",
        ),
        ("base = 'debian:12'\n\n[[step]]\ncopy = ['../secret', '/srv']\n", 4, "not in the file's directory"),
        ("base = 'debian:12\n", 1, ""),
    ] {
        fs::write(&path, text).unwrap();
        let done = home.ask(&["image", "build", "-f", file]);
        assert_eq!(done.code, Some(2), "{done:?}");
        let place = format!("skiff: error: {file}:{line}: ");
        assert!(done.stderr.starts_with(&place) && done.stderr.contains(words), "{text:?}: {done:?}");
    }
    assert!(!home.data().join("images").exists(), "nothing was tried");
}

#[test]
fn what_to_build_is_one_thing() {
    let Some(home) = Home::new() else { return };
    for (args, words) in [
        (&["image", "build"][..], "-f FILE"),
        (&["image", "build", "debian:12", "-f", "a.toml"], "not both"),
        (&["image", "build", "debian:12", "--no-cache"], "has no steps"),
        (&["image", "build", "-f", "a.toml", "--size", "9G"], "size = "),
        (&["image", "build", "Debian"], "debian:12"),
    ] {
        let done = home.ask(args);
        assert!(done.code == Some(2) && done.stderr.contains(words), "{args:?}: {done:?}");
    }
    let gone = home.ask(&["image", "build", "-f", "/nowhere/a.toml"]);
    assert!(gone.code == Some(1) && gone.stderr.contains("cannot read /nowhere/a.toml"), "{gone:?}");
}
