//! Tests of the flags, the file and the resolved spec.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::Result;
use vmm::spec::{
    DISK_KEYS, DiskSpec, FOLDER_KEYS, MEMORY_KEYS, NET_KEYS, NetBackend, NetSpec, Stream, Transport, VmSpec,
};

use super::asked::Asked;
use super::options::FLAGS;
use crate::exit::Usage;
use crate::flags::{self, Takes};

/// What `args` ask for.
fn asked(args: &[&str]) -> Result<Asked> {
    let matches = super::VERB.command().try_get_matches_from([&["run"], args].concat())?;
    let mut asked = Asked::default();
    flags::apply(FLAGS, &matches, &mut asked)?;
    Ok(asked)
}

fn spec(args: &[&str]) -> VmSpec {
    asked(&[&["--kernel", "/k"], args].concat()).unwrap().resolve().unwrap()
}

/// A wrong command line's message, which must be the user's mistake.
fn refused(args: &[&str]) -> String {
    let error = asked(args).and_then(Asked::resolve).unwrap_err();
    assert!(error.is::<Usage>() || error.is::<clap::Error>(), "{error:#}");
    format!("{error:#}")
}

/// They are said of a command in the guest.
const OF_A_COMMAND: [&str; 6] = ["interactive", "tty", "user", "workdir", "env", "entrypoint"];

fn wrong_file(text: &str) -> (usize, String) {
    Asked::from_toml(text).unwrap_err()
}

#[test]
fn every_flag_does_what_its_example_says_and_the_same_in_a_file() {
    for flag in FLAGS {
        let mut by_flag = asked(flag.example.args).unwrap_or_else(|error| panic!("--{}: {error}", flag.name));
        assert_ne!(by_flag, Asked::default(), "--{} does nothing", flag.name);
        if flag.name == "config" {
            assert_eq!(by_flag.config.take().as_deref(), Some(Path::new("/srv/vm.toml")));
            assert_eq!(flag.example.toml, "", "a file cannot name a file");
        } else if OF_A_COMMAND.contains(&flag.name) {
            assert_eq!(flag.example.toml, "", "a file says what a VM is, and not what is done in it");
        } else if ["from", "keep"].contains(&flag.name) {
            assert_eq!(flag.example.toml, "", "a file says what a VM is, and so does a snapshot");
        } else {
            let by_file = Asked::from_toml(flag.example.toml).unwrap();
            assert_eq!(by_flag, by_file, "--{}", flag.name);
        }
    }
}

#[test]
fn every_flag_has_help_and_a_name_of_its_own() {
    let help = super::VERB.command().render_long_help().to_string();
    for (at, flag) in FLAGS.iter().enumerate() {
        assert!(!flag.help.is_empty() && !flag.help.ends_with('.'), "--{}", flag.name);
        assert!(FLAGS.iter().take(at).all(|other| other.name != flag.name), "--{} twice", flag.name);
        assert!(help.contains(&format!("--{}", flag.name)), "--{}", flag.name);
    }
    assert!(help.contains("In a file:  memory = \"2G,hugepages=on\""), "{help}");
}

#[test]
fn every_flag_with_a_value_refuses_what_it_cannot_use() {
    let wrong = [
        ("kernel", "", "--kernel: the path is empty: name a file"),
        ("initrd", "", "--initrd: the path is empty: name a file"),
        ("cmdline", "a\u{7}", "the kernel command line has a control character at byte 1: take it out"),
        ("cpus", "two", "--cpus: 'two' is not a number of vCPUs: write one from 1 to 64"),
        ("cpus", "0", "cpus cannot be 0: a VM has 1 to 64"),
        ("cpus", "300", "cpus cannot be 300: a VM has 1 to 64"),
        (
            "memory",
            "lots",
            "--memory: 'lots' is not an amount of memory: write a number with K, M or G, such as 512M",
        ),
        ("memory", "512", "memory cannot be 512: a VM has at least 64M"),
        (
            "disk",
            "root.img",
            "--disk: 'root.img' names no file: write path=FILE, as in path=disk.img,readonly=on",
        ),
        ("net", "tap0", "--net: 'tap0' says not where the network leads: write tap=NAME, fd=N or user"),
        (
            "net",
            "user,queues=3",
            "the network user: it cannot have 3 queues: passt has 1, only a tap has more",
        ),
        ("publish", "80", "--publish: '80' forwards no port: write HOST:GUEST or ADDRESS:HOST:GUEST"),
        ("volume", "src", "--volume: 'src' shares no folder: write HOST:GUEST or HOST:GUEST:ro"),
        ("fs", "tag=x", "--fs: 'tag=x' names no folder: write path=DIR"),
        ("vsock", "/v,cid=2", "the vsock's cid cannot be 2: 3 to 4294967294"),
        ("serial", "tty", "--serial: 'tty' is not one of stdio, file=PATH and null"),
        ("console", "file", "--console: 'file' is not one of stdio, file=PATH and null"),
        ("balloon", "maybe", "[possible values: on, off]"),
        ("transport", "isa", "[possible values: pci, mmio]"),
        ("config", "", "--config: the path is empty: name a file"),
        ("name", "a b", "'a b' cannot be a VM's name"),
        ("name", "a@b", "'a@b' cannot be a VM's name"),
        ("from", "a@../b", "--from: '../b' cannot be a snapshot's name"),
        ("cpu-template", "", "--cpu-template: the path is empty: name a file"),
        ("user", "", "--user: the user has no name: write USER or USER:GROUP"),
        ("workdir", "", "--workdir: the directory has no name: write its path in the guest"),
        ("entrypoint", "/bin/", "--entrypoint: '/bin/' is a directory: name a program"),
        ("env", "=1", "--env: '=1' names no variable: write KEY=VALUE"),
        ("user-data", "", "--user-data: the path is empty: name a file"),
        ("meta-data", "", "--meta-data: the path is empty: name a file"),
        ("network-config", "", "--network-config: the path is empty: name a file"),
        ("ssh-key", "", "--ssh-key: the path is empty: name a file"),
        ("log-file", "", "--log-file: the path is empty: name a file"),
    ];
    for (name, value, message) in wrong {
        let argument = format!("--{name}={value}");
        let base: &[&str] = if name == "kernel" { &[] } else { &["--kernel", "/k"] };
        let text = refused(&[base, &[&argument]].concat());
        assert!(text.contains(message), "{argument}: {text}");
    }
    for flag in FLAGS.iter().filter(|flag| !matches!(flag.takes, Takes::Nothing | Takes::Count)) {
        assert!(wrong.iter().any(|(name, ..)| *name == flag.name), "--{} is not here", flag.name);
    }
}

#[test]
fn a_missing_kernel_is_told_what_to_give() {
    let text = refused(&["--cpus", "2"]);
    assert!(text.starts_with("no image and no kernel: name an image"), "{text}");
    assert!(text.contains("kernel = \"FILE\""), "{text}");
}

#[test]
fn text_that_is_not_utf8_is_refused_where_text_is_wanted_and_taken_for_a_path() {
    use std::os::unix::ffi::OsStrExt as _;
    let bytes = OsStr::from_bytes(b"/a\xff");
    let mut asked = Asked::default();
    for flag in FLAGS {
        let result = (flag.apply)(&mut asked, bytes);
        let takes_any = matches!(flag.takes, Takes::File(_) | Takes::Nothing | Takes::Count);
        assert_eq!(result.is_ok(), takes_any, "--{}", flag.name);
    }
}

#[test]
fn the_defaults_are_a_small_machine_on_the_serial_port() {
    let wanted = VmSpec {
        kernel: "/k".into(),
        initrd: None,
        cmdline: "console=ttyS0".to_owned(),
        cpus: 1,
        memory: "512M".parse().unwrap(),
        transport: Transport::Pci,
        serial: Stream::Stdio,
        console: Stream::Null,
        disks: Vec::new(),
        nets: Vec::new(),
        ports: Vec::new(),
        vsock: None,
        folders: Vec::new(),
        cpu_template: None,
        balloon: true,
    };
    assert_eq!(spec(&[]), wanted);
}

#[test]
fn one_stream_has_the_terminal_and_the_kernel_speaks_there() {
    let file = |name: &str| Stream::File(name.into());
    for (args, serial, console, cmdline) in [
        (&["--console", "stdio"][..], Stream::Null, Stream::Stdio, "console=hvc0"),
        (&["--console", "stdio", "--serial", "file=/s"], file("/s"), Stream::Stdio, "console=hvc0"),
        (&["--console", "file=/c"], Stream::Stdio, file("/c"), "console=ttyS0"),
        (&["--console", "file=/c", "--serial", "null"], Stream::Null, file("/c"), "console=hvc0"),
        (&["--serial", "null"], Stream::Null, Stream::Null, "console=ttyS0"),
    ] {
        let spec = spec(args);
        assert_eq!(
            (spec.serial, spec.console, spec.cmdline.as_str()),
            (serial, console, cmdline),
            "{args:?}"
        );
    }
    let text = refused(&["--kernel", "/k", "--console", "stdio", "--serial", "stdio"]);
    assert_eq!(text, "serial and console cannot both be stdio: give one of them file=PATH or null");
}

#[test]
fn a_command_line_replaces_the_default() {
    assert_eq!(spec(&["--cmdline", "quiet"]).cmdline, "quiet");
    assert_eq!(spec(&["--cmdline", ""]).cmdline, "");
}

#[test]
fn flags_win_over_the_file_and_disks_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.toml");
    let text = "kernel = \"boot/k\"\ncpus = 2\nmemory = \"1G\"\nserial = \"file=log\"\nlog-file = \"skiff.log\"\n\
                disk = [\"path=a.img\", { path = \"/b.img\", readonly = true }]\n";
    std::fs::write(&path, text).unwrap();
    let flags = asked(&["--cpus", "3", "--disk", "path=/c.img"]).unwrap();
    let all = flags.over(Asked::from_file(&path).unwrap());
    assert_eq!(all.log_file, Some(dir.path().join("skiff.log")));
    let spec = all.resolve().unwrap();
    assert_eq!(spec.kernel, dir.path().join("boot/k"));
    assert_eq!((spec.cpus, spec.memory), (3, "1G".parse().unwrap()));
    assert_eq!(spec.serial, Stream::File(dir.path().join("log")));
    let wanted = [
        DiskSpec::new(dir.path().join("a.img")),
        DiskSpec { readonly: true, ..DiskSpec::new("/b.img") },
        DiskSpec::new("/c.img"),
    ];
    assert_eq!(spec.disks, wanted);
}

#[test]
fn relative_paths_of_flags_start_at_the_current_directory() {
    let here = std::env::current_dir().unwrap();
    let spec =
        asked(&["--kernel", "k", "--disk", "path=d", "--serial", "file=s"]).unwrap().resolve().unwrap();
    assert_eq!(spec.kernel, here.join("k"));
    assert_eq!(spec.disks, [DiskSpec::new(here.join("d"))]);
    assert_eq!(spec.serial, Stream::File(here.join("s")));
}

#[test]
fn published_ports_bring_the_network_that_they_need() {
    assert_eq!(spec(&["-p", "8080:80"]).nets, [NetSpec::new(NetBackend::User)]);
    assert_eq!(spec(&["-p", "8080:80", "--net", "user", "--net", "tap=t"]).nets.len(), 2);
    let text = refused(&["--kernel", "/k", "-p", "8080:80", "--net", "tap=t"]);
    assert_eq!(text, "the port 8080:80 needs a user network: give --net user, too");
    let text = refused(&["--kernel", "/k", "-p", "1:2", "-p", "1:3"]);
    assert!(text.starts_with("the ports 1:2 and 1:3 both need the host's port 1"), "{text}");
}

#[test]
fn networks_and_ports_of_a_file_and_of_flags_add_up_and_a_socket_is_relative_to_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.toml");
    let text = "kernel = \"/k\"\nvsock = \"v.sock\"\npublish = [\"1:2\"]\nmemory = { size = \"1G\", hugepages = true }\n\
                [[net]]\nuser = true\n";
    std::fs::write(&path, text).unwrap();
    let all = |args: &[&str]| asked(args).unwrap().over(Asked::from_file(&path).unwrap()).resolve().unwrap();
    let spec = all(&["--net", "tap=t", "-p", "3:4"]);
    assert_eq!(spec.nets, [NetSpec::new(NetBackend::User), NetSpec::new(NetBackend::Tap("t".to_owned()))]);
    assert_eq!(spec.ports.iter().map(ToString::to_string).collect::<Vec<_>>(), ["1:2", "3:4"]);
    assert_eq!(spec.vsock.unwrap().path, Some(dir.path().join("v.sock")));
    assert!(spec.memory.hugepages);
    let here = std::env::current_dir().unwrap();
    assert_eq!(all(&["--vsock", "v.sock"]).vsock.unwrap().path, Some(here.join("v.sock")));
}

#[test]
fn the_help_names_every_key() {
    let help = |name: &str| FLAGS.iter().find(|flag| flag.name == name).unwrap().long;
    for (name, keys) in [
        ("disk", DISK_KEYS),
        ("net", NET_KEYS),
        ("memory", MEMORY_KEYS.get(1..).unwrap()),
        ("vsock", &["auto", "cid"]),
        ("fs", FOLDER_KEYS),
    ] {
        for key in keys {
            let named =
                help(name).split(|c: char| !c.is_ascii_lowercase() && c != '-').any(|word| word == *key);
            assert!(named, "--{name}: {key}");
        }
    }
}

#[test]
fn a_wrong_file_is_told_its_line_and_the_closest_key() {
    for (text, line, message) in [
        ("kernel = \"k\"\n\nmemry = \"1G\"\n", 3, "there is no key 'memry': did you mean 'memory'?"),
        (
            "[[disk]]\npath = \"a\"\n[[disk]]\npath = \"b\"\nread-only = true",
            5,
            "a disk has no key 'read-only': did you mean 'readonly'?",
        ),
        (
            "kernel = \"k\"\ndisk = [\"path=a\",\n\"b\"]",
            3,
            "'b' names no file: write path=FILE, as in path=disk.img,readonly=on",
        ),
        (
            "memory = \"big\"",
            1,
            "'big' is not an amount of memory: write a number with K, M or G, such as 512M",
        ),
        ("kernel = 'k'\ntransport = 'isa'", 2, "unknown variant `isa`, expected `pci` or `mmio`"),
        ("cpus = \"2\"", 1, "invalid type: string \"2\", expected u64"),
        (
            "[[disk]]\nreadonly = true",
            1,
            "a disk names no file: write path=FILE, as in path=disk.img,readonly=on",
        ),
        (
            "[[net]]\nuser = true\n\nmtu = \"big\"",
            4,
            "the network's mtu cannot be 'big': write a number from 68 to 65520",
        ),
        (
            "publish = [\n\"8080:80\",\n\"80\"]",
            3,
            "'80' forwards no port: write HOST:GUEST or ADDRESS:HOST:GUEST, with /udp after it for UDP, as in 127.0.0.1:8080:80",
        ),
        (
            "[memory]\nsize = \"1G\"\nhugepages = 2",
            3,
            "the memory's hugepages cannot be '2': write on or off",
        ),
        ("[vsock]\npth = \"/v\"", 2, "a vsock has no key 'pth': did you mean 'path'?"),
    ] {
        assert_eq!(wrong_file(text), (line, message.to_owned()), "{text}");
    }
    let (line, message) = wrong_file("zzz = 1");
    assert_eq!(line, 1);
    assert!(message.starts_with("there is no key 'zzz': there are "), "{message}");
    assert_eq!(wrong_file("a = 1\nkernel = ").0, 2);
}

#[test]
fn what_a_dry_run_prints_is_the_same_spec_again() {
    let all: Vec<&str> = FLAGS
        .iter()
        // A template's file is read at once.
        .filter(|flag| {
            let others = ["config", "from", "keep", "cpu-template", "dry-run", "verbose", "log-file"];
            !others.contains(&flag.name)
        })
        .flat_map(|flag| flag.example.args.iter().copied())
        .collect();
    for args in [&["--kernel", "/k"][..], &["--kernel", "/k", "--cmdline", "a \"b\" \\ 'c' é"], &all] {
        let spec = asked(args).unwrap().resolve().unwrap();
        let text = toml::to_string(&spec).unwrap();
        let again = Asked::from_toml(&text).unwrap_or_else(|error| panic!("{error:?} in\n{text}"));
        assert_eq!(again.resolve().unwrap(), spec, "{text}");
    }
}

#[test]
fn what_a_snapshot_says_cannot_be_asked_for_beside_it() {
    let against = |args: &[&str]| asked(args).unwrap().against_from();
    assert!(against(&["--from", "web@s1", "--name", "a", "-d", "--publish", "8080:80"]).is_empty());
    let left =
        ["from", "keep", "name", "detach", "rm", "publish", "volume", "dry-run", "verbose", "log-file"];
    for flag in FLAGS.iter().filter(|flag| !left.contains(&flag.name) && !OF_A_COMMAND.contains(&flag.name)) {
        assert_eq!(against(flag.example.args), [format!("--{}", flag.name)], "--{}", flag.name);
    }
}

#[test]
fn a_file_can_name_an_image_and_the_command_line_wins() {
    let file = || Asked::from_toml("image = \"debian:12\"\nmemory = \"2G\"").unwrap();
    assert_eq!(asked(&["--cpus", "2"]).unwrap().over(file()).image.as_deref(), Some("debian:12"));
    let own = Asked { image: Some("web".to_owned()), ..Asked::default() };
    assert_eq!(own.over(file()).image.as_deref(), Some("web"));
    let (line, message) = wrong_file("imgae = \"x\"");
    assert_eq!((line, message.as_str()), (1, "there is no key 'imgae': did you mean 'image'?"));
}
