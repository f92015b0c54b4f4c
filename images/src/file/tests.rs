//! What is read of a file, what its keys depend on, and what is copied.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use proptest::prelude::*;

use super::cache::{Cache, StepResult};
use super::context::{Context, ContextError};
use super::plan::{Action, Ground, Plan, plan};
use super::*;
use crate::digest::Digest;
use crate::store::Store;

/// The example of the module's documentation.
fn example() -> String {
    let lines = include_str!("mod.rs").lines().skip_while(|line| *line != "//! ```toml").skip(1);
    let lines = lines.take_while(|line| *line != "//! ```");
    lines.map(|line| format!("{}\n", line.trim_start_matches("//!").trim_start())).collect()
}

fn ground() -> Ground<'static> {
    Ground { version: "1", base: Digest::of(b"base"), size: 1 << 30 }
}

fn planned(text: &str, dir: &Path) -> Result<Plan, ContextError> {
    let context = Context::open(dir).unwrap();
    plan(&parse(text).unwrap(), &ground(), &Defaults::default(), &context, &mut |_| {})
}

/// The line of the mistake in `text`, and what is said of it.
fn mistake(text: &str) -> (usize, String) {
    let error = parse(text).unwrap_err();
    (error.line, error.wrong.to_string())
}

#[test]
fn the_example_is_read_as_it_says() {
    let file = parse(&example()).unwrap();
    assert_eq!(file.base, "debian:12".parse().unwrap());
    assert_eq!(file.name, Some("web".parse().unwrap()));
    assert_eq!((file.cpus, file.size.as_ref().unwrap().value, file.warm), (Some(2), 20 << 30, true));
    let [packages, workdir, copy, run] = file.steps.as_slice() else { panic!("{:?}", file.steps) };
    assert_eq!(packages.what, What::Packages(vec!["nginx".to_owned(), "git".to_owned()]));
    assert_eq!(workdir.what, What::Workdir("/srv".to_owned()));
    let What::Copy(copy) = &copy.what else { panic!() };
    assert_eq!((copy.to.as_str(), copy.mode, copy.exclude.len()), ("/srv/app", Some(0o644), 2));
    let What::Run(run) = &run.what else { panic!() };
    assert_eq!(run.argv, ["/bin/sh", "-ec", "make -C /srv/app install"]);
    assert_eq!((run.timeout, run.env.as_slice()), (Some(600), ["PREFIX=/usr".to_owned()].as_slice()));
}

#[test]
fn a_base_alone_is_a_file() {
    let file = parse("base = 'debian:12'").unwrap();
    assert!(file.steps.is_empty() && file.warm && file.name.is_none());
    let base = Defaults { user: "app".to_owned(), command: vec!["run".to_owned()], ..Defaults::default() };
    assert_eq!(file.defaults(&base), base);
}

#[test]
fn what_a_file_says_goes_over_its_base_or_adds_to_it() {
    let base = Defaults {
        env: vec!["A=1".to_owned(), "B=2".to_owned()],
        ports: vec!["80/tcp".to_owned()],
        command: vec!["old".to_owned()],
        ..Defaults::default()
    };
    let file = parse("base = 'b'\nenv = { B = '3', C = '' }\nports = ['80', '53/udp']\nentrypoint = ['/e']")
        .unwrap();
    let defaults = file.defaults(&base);
    assert_eq!(defaults.env, ["A=1", "B=3", "C="]);
    assert_eq!(defaults.ports, ["80/tcp", "53/udp"]);
    assert_eq!((defaults.entrypoint, defaults.command), (vec!["/e".to_owned()], Vec::new()));
}

#[test]
fn every_mistake_has_its_line_and_a_fix() {
    let step = |lines: &str| format!("base = 'b'\n[[step]]\n{lines}\n");
    for (text, line, words) in [
        ("packages = []".to_owned(), 1, "no base"),
        ("base = 'b'\n\nfoo = 1".to_owned(), 3, "there is no key 'foo'"),
        (step("run = 'a'\nowner = 'x'"), 4, "there is no key 'owner'"),
        (step("copy = ['a', '/b']\nuser = 'x'"), 4, "there is no key 'user'"),
        (step("run = 'a'\ncopy = ['a', '/b']"), 2, "both run and copy"),
        (step("env = {}"), 2, "does nothing"),
        (step("run = ''"), 2, "runs nothing"),
        (step("run = []"), 2, "runs nothing"),
        (step("run = 7"), 3, "a line for the shell"),
        (step("copy = ['/etc/passwd', '/b']"), 3, "not in the file's directory"),
        (step("copy = ['a/../../b', '/b']"), 3, "not in the file's directory"),
        (step("copy = ['', '/b']"), 3, "not in the file's directory"),
        (step("copy = ['a']"), 3, "two paths or more"),
        (step("copy = ['a', 'b']"), 3, "not absolute"),
        (step("copy = ['a', '/b/../../c']"), 3, ".. in it"),
        (step("copy = ['a', 'b', '/c']"), 3, "'/c/'"),
        (step("copy = ['a', '/c']\nmode = '9'"), 4, "octal"),
        (step("copy = ['a', '/c']\nmode = 644"), 4, "string"),
        (step("run = 'a'\ntimeout = '10'"), 4, "90s"),
        (step("run = 'a'\nworkdir = 'srv'"), 4, "absolute"),
        (step("run = 'a'\nenv = { 'A=B' = 'x' }"), 4, "variable"),
        ("base = 'Debian'".to_owned(), 1, "debian:12"),
        ("base = 'b'\ncpus = 0".to_owned(), 2, "vCPUs"),
        ("base = 'b'\nsize = '20'".to_owned(), 2, "20G"),
        ("base = 'b'\nsize = '99999999999T'".to_owned(), 2, "20G"),
        ("base = 'b'\nports = ['0']".to_owned(), 2, "80/tcp"),
        ("base = 'b'\npackages = [\n'git',\n'-y']".to_owned(), 4, "package"),
        ("base = 'b'\nbase = 'c'".to_owned(), 2, "duplicate"),
        ("base = ".to_owned(), 1, ""),
    ] {
        let (at, message) = mistake(&text);
        assert_eq!(at, line, "{text:?}: {message}");
        assert!(message.contains(words), "{text:?}: {message}");
    }
}

proptest! {
    #[test]
    fn no_text_breaks_the_parser(text in "[a-z=\\[\\]{}'\"\n 0-9./-]{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_value_breaks_it(key in prop::sample::select(vec!["base", "size", "workdir", "cpus", "run", "copy", "mode", "timeout"]), value in ".{0,40}") {
        let value = value.replace(['\'', '\n', '\r'], "");
        let _ = parse(&format!("base = 'b'\n{key} = '{value}'"));
        let _ = parse(&format!("base = 'b'\n[[step]]\n{key} = '{value}'"));
        let _ = parse(&format!("base = 'b'\n[[step]]\n{key} = ['{value}', '/a']"));
    }

    #[test]
    fn no_copy_names_what_is_outside(source in "[a./]{0,12}") {
        if let Ok(file) = parse(&format!("base = 'b'\n[[step]]\ncopy = ['{source}', '/a']")) {
            let What::Copy(copy) = &file.steps[0].what else { panic!() };
            prop_assert!(copy.sources.iter().all(|path| !path.starts_with('/') && !path.split('/').any(|part| part == "..")));
        }
    }
}

fn keys(plan: &Plan) -> Vec<Digest> {
    plan.steps.iter().map(|step| step.key).chain([plan.image]).collect()
}

#[test]
fn a_key_depends_on_all_that_a_result_does_and_on_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("app");
    fs::create_dir(&app).unwrap();
    fs::write(app.join("main"), "1").unwrap();
    let text =
        "base = 'b'\n[[step]]\nrun = 'one'\n[[step]]\ncopy = ['app', '/srv']\n[[step]]\nrun = 'three'\n";
    let first = keys(&planned(text, dir.path()).unwrap());
    // The number of keys that stay, of the three steps' and the image's.
    let same = |text: &str| {
        let other = keys(&planned(text, dir.path()).unwrap());
        first.iter().zip(&other).take_while(|(a, b)| a == b).count()
    };
    assert_eq!(same(text), 4);
    assert_eq!(same(&text.replace("one", "two")), 0);
    assert_eq!(same(&text.replace("'/srv'", "'/opt'")), 1);
    assert_eq!(same(&text.replace("three", "four")), 2);
    assert_eq!(same(&text.replace("'three'", "'three'\nuser = 'app'")), 2);
    assert_eq!(same(&text.replace("'b'", "'b'\nenv = { A = '1' }")), 0);
    assert_eq!(same(&text.replace("'b'", "'b'\ncommand = ['x']")), 3, "the steps are the same");
    assert_eq!(same(&text.replace("'three'", "'three'\ntimeout = '9s'")), 4);
    assert_eq!(same(&text.replace("'b'", "'b'\n# cpus")), 4);

    fs::write(app.join("main"), "2").unwrap();
    assert_eq!(same(text), 1, "the content of a file");
    fs::write(app.join("main"), "1").unwrap();
    assert_eq!(same(text), 4, "not its time");
    fs::set_permissions(app.join("main"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(same(text), 1, "its mode");
    fs::set_permissions(app.join("main"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(same(text), 4);
    fs::write(app.join("other"), "").unwrap();
    assert_eq!(same(text), 1, "another file");
    assert_eq!(same(&text.replace("'/srv']", "'/srv']\nexclude = ['oth*']")), 4, "one that is left out");

    let context = Context::open(dir.path()).unwrap();
    for ground in [
        Ground { version: "2", ..ground() },
        Ground { base: Digest::of(b"other"), ..ground() },
        Ground { size: 2 << 30, ..ground() },
    ] {
        let other =
            plan(&parse(text).unwrap(), &ground, &Defaults::default(), &context, &mut |_| {}).unwrap();
        assert!(keys(&other).iter().zip(&first).all(|(a, b)| a != b));
    }
}

/// The names in the archive of the only step of `text`, with mode, kind and content.
fn archived(text: &str, dir: &Path, name: Option<&str>) -> Vec<(String, u32, String)> {
    let plan = planned(text, dir).unwrap();
    let Action::Copy(copy, tree) = &plan.steps[0].action else { panic!() };
    let mut bytes = Vec::new();
    Context::open(dir).unwrap().pack(tree, name, copy.mode, &mut bytes).unwrap();
    let mut archive = tar::Archive::new(&bytes[..]);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let (path, mode) = (entry.path().unwrap().display().to_string(), entry.header().mode().unwrap());
        assert_eq!((entry.header().uid().unwrap(), entry.header().gid().unwrap()), (0, 0));
        let mut content = String::new();
        std::io::Read::read_to_string(&mut entry, &mut content).unwrap();
        let link = entry.link_name().unwrap().map(|link| format!("-> {}", link.display()));
        (path, mode, link.unwrap_or(content))
    });
    entries.collect()
}

#[test]
fn a_tree_is_copied_with_links_as_links_and_a_file_under_its_new_name() {
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("app");
    fs::create_dir_all(app.join("sub")).unwrap();
    fs::write(app.join("sub/run"), "hello").unwrap();
    fs::set_permissions(app.join("sub/run"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(app.join("sub"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(app.join("x.o"), "").unwrap();
    symlink("/etc/passwd", app.join("out")).unwrap();
    symlink("app/sub", dir.path().join("short")).unwrap();
    let long = "n".repeat(180);
    fs::write(dir.path().join(&long), "long").unwrap();

    let step = |lines: &str| format!("base = 'b'\n[[step]]\n{lines}");
    let entry = |path: &str, mode, content: &str| (path.to_owned(), mode, content.to_owned());
    assert_eq!(
        archived(&step("copy = ['app/', '/srv']\nexclude = ['*.o']"), dir.path(), None),
        [entry("out", 0o777, "-> /etc/passwd"), entry("sub", 0o755, ""), entry("sub/run", 0o755, "hello")]
    );
    assert_eq!(
        archived(&step("copy = ['short', '/srv']\nmode = '0640'"), dir.path(), None),
        [entry("run", 0o640, "hello")]
    );
    assert_eq!(
        archived(&step("copy = ['app/sub/run', '/usr/bin/start']"), dir.path(), Some("start")),
        [entry("start", 0o755, "hello")]
    );
    assert_eq!(archived(&step(&format!("copy = ['{long}', '/srv/']")), dir.path(), None)[0].0, long);
    let all =
        archived(&step("copy = ['.', '/srv']\nexclude = ['app/sub', 'n*']\nmode = '0600'"), dir.path(), None);
    let names: Vec<&str> = all.iter().map(|(name, _, _)| name.as_str()).collect();
    assert_eq!(names, ["app", "app/out", "app/x.o", "short"]);
    assert_eq!(all[0].1, 0o700, "a directory of files that their owner can read can be entered by them");
}

#[test]
fn nothing_outside_is_copied_and_what_is_no_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("inside");
    fs::create_dir(&inside).unwrap();
    fs::write(dir.path().join("secret"), "s").unwrap();
    symlink("../secret", inside.join("up")).unwrap();
    symlink("/etc", inside.join("etc")).unwrap();
    symlink("/proc/self/root", inside.join("magic")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(inside.join("socket")).unwrap();
    let find = |source: &str| {
        let text = format!("base = 'b'\n[[step]]\ncopy = ['{source}', '/srv/']");
        planned(&text, &inside).unwrap_err()
    };
    for source in ["up", "etc", "etc/passwd", "magic", "magic/etc/passwd"] {
        let error = find(source);
        assert!(matches!(error, ContextError::Outside { line: 2, .. }), "{source}: {error}");
    }
    assert!(matches!(find("nothing"), ContextError::Missing { .. }));
    assert!(matches!(find("socket"), ContextError::Special { what: "a socket", .. }));
    assert!(matches!(find("."), ContextError::Special { .. }));
}

#[test]
fn what_changes_while_it_is_copied_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    fs::write(&path, "one").unwrap();
    let plan = planned("base = 'b'\n[[step]]\ncopy = ['a', '/srv/']", dir.path()).unwrap();
    let Action::Copy(_, tree) = &plan.steps[0].action else { panic!() };
    assert_eq!((tree.bytes(), tree.count(), tree.is_single()), (3, 1, true));
    let context = Context::open(dir.path()).unwrap();
    for other in ["two", "longer", "s"] {
        fs::write(&path, other).unwrap();
        let packed = context.pack(tree, None, None, &mut Vec::new());
        assert!(matches!(packed, Err(ContextError::Changed { .. })), "{other}: {packed:?}");
    }
}

#[test]
fn results_are_remembered_and_damaged_ones_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path());
    let (cache, key) = (Cache::of(&store), Digest::of(b"key"));
    assert_eq!((cache.step(key).unwrap(), cache.all_steps().unwrap()), (None, Vec::new()));
    let result =
        StepResult { snapshot: "s".to_owned(), vm: "v".to_owned(), title: "run x".to_owned(), created_ms: 1 };
    cache.put_step(key, &result).unwrap();
    assert_eq!(cache.all_steps().unwrap(), [(key, result)]);
    cache.put_image(key, Digest::of(b"image")).unwrap();
    assert_eq!(cache.image(key).unwrap(), None, "an image that is not there is none");
    cache.clear().unwrap();
    assert_eq!(cache.all_steps().unwrap().len(), 1);
    fs::write(dir.path().join(format!("cache/step-{}.json", key.hex())), "{").unwrap();
    assert_eq!((cache.step(key).unwrap(), cache.all_steps().unwrap()), (None, Vec::new()));
    cache.remove_step(key).unwrap();
    cache.remove_step(key).unwrap();
    assert_eq!(fs::read_dir(dir.path().join("cache")).unwrap().count(), 0);
}

#[test]
fn one_at_a_time_makes_what_a_key_names() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path());
    let (cache, key) = (Cache::of(&store), Digest::of(b"key"));
    let mut waited = false;
    let first = cache.make(key, || waited = true).unwrap();
    assert!(!waited);
    cache.clear().unwrap();
    let (say, said) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| drop(cache.make(key, || say.send(()).unwrap()).unwrap()));
        said.recv().unwrap();
        drop(first);
    });
    cache.clear().unwrap();
    assert_eq!(fs::read_dir(dir.path().join("cache")).unwrap().count(), 0);
}

/// What a step with packages runs in a guest that has these programs and no others, and its exit code. `apt-get` fails at what is `broken`.
fn installed(programs: &[&str], broken: &str) -> (Vec<String>, Option<i32>) {
    let dir = tempfile::tempdir().unwrap();
    let (bin, log) = (dir.path().join("bin"), dir.path().join("log"));
    fs::create_dir(&bin).unwrap();
    fs::write(&log, "").unwrap();
    for program in ["cut", "grep", "sleep", "rm"].iter().chain(programs) {
        let path = bin.join(program);
        let say = format!("echo {program} $DEBIAN_FRONTEND \"$@\" >> '{}'", log.display());
        let fail = format!("case \" $* \" in *' {broken} '*) exit 100;; esac");
        fs::write(&path, format!("#!/bin/sh\n{say}\n{fail}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let plan = planned("base = 'b'\npackages = ['nginx', 'git=1:2']", dir.path()).unwrap();
    let Action::Run(exec) = &plan.steps[0].action else { panic!("{plan:?}") };
    assert_eq!((exec.argv[0].as_str(), exec.cwd.as_deref(), &exec.user), ("/bin/sh", Some("/"), &None));
    // Nothing but what is in that directory can be run, least of all this machine's package manager.
    let ran = std::process::Command::new(&exec.argv[0])
        .args(&exec.argv[1..])
        .env_clear()
        .env("PATH", &bin)
        .output();
    let lines = fs::read_to_string(&log).unwrap();
    let kept =
        |line: &&str| programs.iter().any(|program| line.starts_with(program)) || line.starts_with("rm");
    (lines.lines().filter(kept).map(str::to_owned).collect(), ran.unwrap().status.code())
}

#[test]
fn packages_are_installed_by_what_the_guest_has_with_lists_that_are_fresh_and_leave_nothing_behind() {
    let (ran, code) = installed(&["apt-get"], "nothing");
    assert_eq!(code, Some(0));
    let [update, install, clean, remove] = &ran[..] else { panic!("{ran:?}") };
    assert!(update.starts_with("apt-get noninteractive -q ") && update.ends_with(" update"), "{update}");
    assert!(update.contains("APT::Update::Error-Mode=any"), "{update}");
    assert!(install.starts_with("apt-get noninteractive -qy "), "{install}");
    assert!(install.ends_with(" install --no-install-recommends -- nginx git=1:2"), "{install}");
    assert_eq!(clean, "apt-get noninteractive -q clean");
    assert!(remove.starts_with("rm noninteractive -rf /var/lib/apt/lists/"), "{remove}");
    assert_eq!(
        installed(&["apk"], "nothing"),
        (vec!["apk add --no-cache nginx git=1:2".to_owned()], Some(0))
    );
    let (ran, code) = installed(&["dnf"], "nothing");
    assert_eq!(
        (&ran[..], code),
        (&["dnf -qy install nginx git=1:2".to_owned(), "dnf -q clean all".to_owned()][..], Some(0))
    );
    assert_eq!(installed(&[], "nothing"), (Vec::new(), Some(1)));
    // What cannot be fetched is said by the program that fetches it, and not by the next one.
    let (ran, code) = installed(&["apt-get"], "update");
    assert_eq!((ran.len(), code), (1, Some(100)));
}
