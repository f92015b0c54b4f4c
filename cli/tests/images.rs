//! Images and the VMs of them, by the program: a tiny guest under /dev/kvm, and skiff's verbs at once.

mod support;

use std::io::{BufRead as _, Write as _};
use std::process::Stdio;

use images::manifest::{Agent, Defaults, Disk, Manifest, SCHEMA, Source};
use images::name::Name;
use images::store::{Store, Warm};
use support::{Home, READY, done, wait};

/// The store of images of this place.
fn store(home: &Home) -> Store {
    Store::open(home.data().join("images"))
}

/// Keep an image of the guest called `name`, whose disk holds `content` on one that all such images share.
fn keep(home: &Home, name: &str, content: &str) -> String {
    let store = store(home);
    let scratch = store.scratch().unwrap();
    let file = |text: &str, len: usize| {
        let path = scratch.path().join(len.to_string());
        let mut disk = text.as_bytes().to_vec();
        disk.resize(len, 0);
        std::fs::write(&path, disk).unwrap();
        path
    };
    let base = store.disk_from_raw(&file("what all have", 1 << 20), &mut |_, _| ()).unwrap();
    let top = store.disk_from_raw(&file(content, 2 << 20), &mut |_, _| ()).unwrap();
    let top = store.disk_on(&[&store.blob_path(&top.digest)], &base, &mut |_, _| ()).unwrap();
    let manifest = Manifest {
        schema: SCHEMA,
        os: "Tiny".to_owned(),
        created_ms: 1,
        source: Source::Rootfs,
        kernel: store.add_bytes(&std::fs::read(&home.kernel).unwrap()).unwrap(),
        initrd: None,
        modules: None,
        cmdline: "quiet".to_owned(),
        disk: Disk { layers: vec![top, base], size: 2 << 20, grows_to: 16 << 20 },
        agent: Agent::None,
        defaults: Defaults { memory: Some("64M".to_owned()), ..Defaults::default() },
    };
    let id = store.put(&manifest).unwrap();
    store.tag(&name.parse::<Name>().unwrap(), &id).unwrap();
    id.to_string()
}

/// How many files lie there.
fn count(home: &Home, dir: &str) -> usize {
    std::fs::read_dir(home.data().join(dir)).into_iter().flatten().count()
}

#[test]
fn images_are_listed_tagged_removed_and_freed() {
    let Some(home) = Home::new() else { return };
    assert_eq!(home.ok(&["image", "ls", "-q"]), "");
    assert_eq!(home.ok(&["image", "prune"]), "freed 0 B: images 0, files 0\n");
    let id = keep(&home, "tiny:1", "one");
    keep(&home, "other", "another");
    let table = home.ok(&["image", "ls"]);
    assert!(table.starts_with("NAME          ID            OS    SIZE"), "{table}");
    assert_eq!(home.ok(&["image", "ls", "-q"]), "other:latest\ntiny:1\n");
    let json: Vec<serde_json::Value> = serde_json::from_str(&home.ok(&["image", "ls", "--json"])).unwrap();
    assert_eq!((json[1]["id"].as_str(), json[1]["names"][0].as_str()), (Some(id.as_str()), Some("tiny:1")));

    home.ok(&["image", "tag", "tiny:1", "tiny"]);
    home.ok(&["image", "tag", "tiny", "host.example/a/tiny:2"]);
    let wrong = home.ask(&["image", "tag", "tiny", "Wrong"]);
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
    let inspected = home.ok(&["image", "inspect", "tiny"]);
    assert!(
        inspected.contains(&format!("# id: {id}\n")) && inspected.contains("os = \"Tiny\""),
        "{inspected}"
    );
    let whole: Vec<serde_json::Value> =
        serde_json::from_str(&home.ok(&["image", "inspect", "--json", "tiny"])).unwrap();
    assert_eq!(whole[0]["files"].as_array().unwrap().len(), 3);
    let near = home.ask(&["run", "tinny"]);
    assert!(near.stderr.contains("there is no image 'tinny': did you mean 'tiny:latest'?"), "{near:?}");

    // A name goes, then the image with its last ones, and of its files what the other does not need.
    assert_eq!(home.ok(&["image", "rm", "tiny:1"]), "tiny:1\n");
    let blobs = count(&home, "images/blobs");
    assert_eq!(home.ok(&["image", "rm", &id]), "host.example/a/tiny:2\ntiny:latest\n");
    assert_eq!(home.ok(&["image", "ls", "-q"]), "other:latest\n");
    assert_eq!(blobs - count(&home, "images/blobs"), 1);
    let freed = home.ok(&["image", "prune", "-a"]);
    assert!(
        freed.starts_with("removed other:latest\nfreed ") && freed.ends_with("images 1, files 3\n"),
        "{freed}"
    );
    assert_eq!(count(&home, "images/blobs"), 0);
}

#[test]
fn an_image_goes_to_standard_output_as_it_goes_to_a_file() {
    let Some(home) = Home::new() else { return };
    keep(&home, "tiny", "one");
    let file = home.data().join("tiny.raw");
    home.ok(&["image", "export", "-q", "tiny", file.to_str().unwrap()]);
    let disk = std::fs::read(file).unwrap();
    assert!(disk.len() == 2 << 20 && disk.starts_with(b"one"));
    let export = |words: &[&str]| {
        home.skiff().args(["image", "export", "-q", "tiny", "-"]).args(words).output().unwrap()
    };
    let piped = export(&["--format", "raw"]);
    assert!(piped.status.success() && piped.stdout == disk, "{piped:?}");
    assert_eq!(count(&home, "images/scratch"), 0);
    let asked = export(&[]);
    assert_eq!(asked.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&asked.stderr).contains("Choose with --format: qcow2, raw"), "{asked:?}");
}

#[test]
fn a_vm_of_an_image_is_thrown_away_with_what_it_wrote() {
    let Some(home) = Home::new() else { return };
    let id = keep(&home, "tiny", "one");
    let dry = home.ok(&["run", "--dry-run", "--net", "none", "tiny"]);
    assert!(dry.contains("cmdline = \"quiet console=ttyS0\"") && dry.contains("layers = true"), "{dry}");
    let run = |name: &str| {
        let mut run = home.skiff();
        run.args(["run", "--net", "none", name]).stdin(Stdio::piped()).stdout(Stdio::piped());
        run.spawn().unwrap()
    };
    // Two at once, by a name and by the ID.
    let mut vms = [run("tiny"), run(&id)];
    home.wait_until("two VMs run", |home| home.ok(&["ps"]).matches("Running").count() == 2);
    assert_eq!(count(&home, "layers"), 2);
    let shown: Vec<serde_json::Value> = serde_json::from_str(&home.ok(&["ps", "--json"])).unwrap();
    assert!(shown.iter().all(|vm| vm["image_id"] == id.as_str()), "{shown:?}");
    assert!(home.ok(&["ps"]).contains("IMAGE"));
    // What it needs stays, even if it has no name any more.
    let refused = home.ask(&["image", "rm", "tiny"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("tiny is in use by "), "{refused:?}");
    assert_eq!(home.ok(&["image", "rm", "-f", "tiny"]), "tiny:latest\n");
    assert_eq!(home.ok(&["image", "prune", "-a"]), "freed 0 B: images 0, files 0\n");
    assert_eq!(count(&home, "images/blobs"), 3);
    for vm in &mut vms {
        vm.stdin.take().unwrap().write_all(b"o").unwrap();
        assert!(wait(vm).success());
    }
    home.wait_until("the VMs are gone", |home| home.ok(&["ps", "-aq"]).is_empty());
    assert_eq!(count(&home, "layers"), 0);
    let freed = home.ok(&["system", "prune"]);
    assert!(freed.ends_with("images 1\n"), "{freed}");
    assert_eq!(count(&home, "images/blobs"), 0);
}

#[test]
fn a_vm_that_stays_keeps_its_image_and_so_do_its_snapshots_and_clones() {
    let Some(home) = Home::new() else { return };
    keep(&home, "tiny", "one");
    assert_eq!(home.ok(&["run", "-d", "--name", "web", "--net", "none", "tiny"]), "web\n");
    home.wait_until("the guest speaks", |home| home.ok(&["logs", "web"]).contains(READY));
    assert_eq!(home.ps("web").unwrap()["image"], "tiny");
    home.ok(&["snapshot", "create", "web", "s1"]);
    home.ok(&["clone", "web@s1", "--name", "copy", "-q"]);
    assert_eq!(home.ps("copy").unwrap()["image"], "tiny:latest");
    home.ok(&["rm", "-f", "--snapshots", "web"]);
    home.ok(&["system", "prune"]);
    assert_eq!(home.ok(&["image", "prune", "-a"]), "freed 0 B: images 0, files 0\n");
    home.ok(&["kill", "copy"]);
    home.ok(&["start", "copy"]);
    assert_eq!(
        (home.status("copy"), home.ps("copy").unwrap()["image"].as_str()),
        ("running".to_owned(), Some("tiny:latest"))
    );
    let df: serde_json::Value = serde_json::from_str(&home.ok(&["system", "df", "--json"])).unwrap();
    assert_eq!((df["images"]["count"].as_u64(), df["images"]["reclaimable"].as_u64()), (Some(1), Some(0)));
    home.ok(&["rm", "-f", "copy"]);
    assert!(home.ok(&["image", "prune", "-a"]).starts_with("removed tiny:latest\nfreed "));
    assert_eq!(count(&home, "images/blobs"), 0);
}

/// The names in a directory of the data.
fn names(home: &Home, dir: &str) -> Vec<String> {
    let entries = std::fs::read_dir(home.data().join(dir)).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.'))
        .collect()
}

#[test]
fn a_warm_image_starts_from_its_snapshot_which_lives_as_long_as_the_image() {
    let Some(home) = Home::new() else { return };
    let id = keep(&home, "tiny", "one").parse().unwrap();
    home.ok(&["run", "-d", "--name", "maker", "--net", "none", "tiny"]);
    home.wait_until("the guest speaks", |home| home.ok(&["logs", "maker"]).contains(READY));
    home.ok(&["snapshot", "create", "maker", "s1"]);
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(home.store().join("vms/maker/layers.json")).unwrap()).unwrap();
    let snapshot = names(&home, "snapshots").pop().unwrap();
    let vm = record["vm"].as_str().unwrap().to_owned();
    let warm = Warm { snapshot: snapshot.clone(), vm, cpus: 1, memory: 64 << 20 };
    store(&home).set_warm(&id, Some(&warm)).unwrap();
    // Its VM goes without a word about its snapshot.
    home.ok(&["kill", "maker"]);
    std::fs::remove_dir_all(home.store().join("vms/maker")).unwrap();
    home.ok(&["system", "prune"]);
    assert_eq!(names(&home, "snapshots"), [snapshot]);
    assert!(home.ok(&["image", "ls"]).contains("yes"));
    // No guest that was booted could be without its first word; this one has said it before.
    assert_eq!(home.ok(&["run", "-d", "--name", "warm", "--net", "none", "tiny"]), "warm\n");
    assert!(!home.ok(&["logs", "warm"]).contains(READY));
    assert_eq!(home.ok(&["run", "-d", "--name", "cold", "--net", "none", "--cpus", "2", "tiny"]), "cold\n");
    home.wait_until("the guest speaks", |home| home.ok(&["logs", "cold"]).contains(READY));
    home.ok(&["rm", "-f", "warm", "cold"]);
    home.ok(&["image", "rm", "tiny"]);
    home.ok(&["system", "prune"]);
    assert_eq!((count(&home, "snapshots"), count(&home, "layers"), count(&home, "images/blobs")), (0, 0, 0));
}

#[test]
fn verbs_at_once_do_not_harm_each_other() {
    let Some(home) = Home::new() else { return };
    std::thread::scope(|scope| {
        for number in 0..3 {
            let home = &home;
            scope.spawn(move || {
                let name = format!("tiny:{number}");
                for _ in 0..3 {
                    keep(home, &name, &name);
                    // The guest ends at once: nobody types.
                    let mut run = home.skiff();
                    let ran = done(run.args(["run", "-d", "--rm", "--net", "none", &name]));
                    assert_eq!(ran.code, Some(0), "{ran:?}");
                    home.ok(&["rm", "-f", ran.stdout.trim_end()]);
                    home.ok(&["image", "rm", &name]);
                }
            });
        }
        let home = &home;
        scope.spawn(move || {
            for _ in 0..6 {
                home.ok(&["image", "prune"]);
                home.ok(&["image", "ls", "--json"]);
            }
        });
    });
    home.ok(&["image", "prune"]);
    assert_eq!((home.ok(&["image", "ls", "-q"]), count(&home, "images/blobs")), (String::new(), 0));
}

#[test]
fn a_shell_completes_images() {
    let Some(home) = Home::new() else { return };
    keep(&home, "tiny:1", "one");
    keep(&home, "web", "two");
    for verb in [&["run"][..], &["image", "rm"], &["image", "inspect"]] {
        let words = [&["--", "skiff"], verb, &[""]].concat();
        let mut command = home.skiff();
        command
            .args(&words)
            .env("SKIFF_COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", (words.len() - 2).to_string());
        let offered = done(&mut command).stdout;
        assert!(offered.contains("tiny") && offered.lines().any(|line| line == "web"), "{verb:?}: {offered}");
    }
}

/// A registry without TLS that lets in who says `me:it is secret`, and has nothing. Says its port.
fn registry() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let lines = std::io::BufReader::new(&stream).lines().map_while(Result::ok);
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let known = head.iter().any(|line| line.ends_with("Basic bWU6aXQgaXMgc2VjcmV0"));
            let answer = match known {
                true => "404 x\r\n",
                false => "401 x\r\nwww-authenticate: Basic realm=\"x\"\r\n",
            };
            let whole = format!("HTTP/1.1 {answer}content-length: 0\r\nconnection: close\r\n\r\n");
            // Who speaks TLS hears nothing.
            let _ = (!head.is_empty()).then(|| (&stream).write_all(whole.as_bytes()));
        }
    });
    port
}

#[test]
fn who_somebody_is_to_a_registry_says_the_helper_that_docker_asks() {
    let Some(home) = Home::new() else { return };
    let port = registry();
    let host = format!("localhost:{port}");
    let bin = home.data().join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let helper = bin.join("docker-credential-test");
    let script = format!(
        "#!/bin/sh\nread -r asked\n[ \"$1 $asked\" = 'get {host}' ] || {{ echo credentials not found in native keychain; exit 1; }}\n\
         echo '{{\"ServerURL\":\"{host}\",\"Username\":\"me\",\"Secret\":\"it is secret\"}}'\n"
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let pull = |config: String| {
        std::fs::write(bin.join("config.json"), config).unwrap();
        let mut command = home.skiff();
        command.env("DOCKER_CONFIG", &bin).env("PATH", &path);
        done(command.args(["image", "pull", "-q", &format!("{host}/app:1")]))
    };
    for config in [
        format!(r#"{{"credHelpers":{{"{host}":"test"}}}}"#),
        r#"{"credsStore":"test"}"#.to_owned(),
        format!(r#"{{"auths":{{"{host}":{{}}}},"credsStore":"test","credHelpers":{{"other":"none"}}}}"#),
    ] {
        let done = pull(config);
        assert!(done.stderr.contains("has no image") && !done.stderr.contains("secret"), "{done:?}");
    }
    let done = pull(r#"{"credHelpers":{"other.example":"test"}}"#.to_owned());
    assert!(done.stderr.contains("docker login"), "{done:?}");
    let done = pull(format!(r#"{{"credHelpers":{{"{host}":"missing"}}}}"#));
    assert!(done.stderr.contains("cannot run docker-credential-missing"), "{done:?}");
}

/// Processes that have `place` in their command lines, or work in it.
fn working_in(place: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let words = entries.filter_map(|dir| {
        let command = std::fs::read(dir.join("cmdline")).ok()?;
        let at = std::fs::read_link(dir.join("cwd")).unwrap_or_default();
        Some(format!("{} in {}", String::from_utf8_lossy(&command).replace('\0', " "), at.display()))
    });
    words.filter(|words| words.contains(place)).collect()
}

#[test]
fn a_build_that_is_interrupted_leaves_nothing_behind() {
    use rustix::process::{Pid, Signal, kill_process, kill_process_group};
    use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
    let Some(home) = Home::new() else { return };
    if std::process::Command::new("mmdebstrap").arg("--version").output().is_err() {
        eprintln!("skipped: there is no mmdebstrap");
        return;
    }
    // A mirror that never answers.
    let mirror = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/debian", mirror.local_addr().unwrap());
    let tmp = home.data().join("tmp");
    std::fs::create_dir_all(&tmp).unwrap();
    // By apt alone, which looks for the newest kernel first, or by mmdebstrap; to skiff alone, or as a terminal does.
    for (name, to_all) in [("debian:12", false), ("debian:12", true), ("debian:11", false)] {
        let mut command = home.skiff();
        command.args(["image", "build", name, "--mirror", &address]).env("TMPDIR", &tmp);
        command.env_remove("http_proxy").process_group(0).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let pid = Pid::from_child(&child);
        let asked = mirror.accept();
        assert!(asked.is_ok() && count(&home, "images/scratch") == 2);
        let place = home.data().display().to_string();
        assert!(!working_in(&place).is_empty());
        match to_all {
            true => kill_process_group(pid, Signal::INT),
            false => kill_process(pid, Signal::INT),
        }
        .unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(2), "{name}: {status:?}");
        assert_eq!((count(&home, "images/scratch"), count(&home, "tmp")), (0, 0), "{name}");
        assert_eq!(working_in(&place), [""; 0], "{name}");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&place), "{mounts}");
    }
}
