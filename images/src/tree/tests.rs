//! Whatever an archive says, it stays in its place; and what is packed comes out as it was.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use proptest::prelude::*;

use super::tar::{Entry, Kind, Writer};
use super::*;

fn entry(path: &str, kind: Kind) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: (1_000_000, 0),
        link: Vec::new(),
        size: 0,
        stored: 0,
        map: None,
        xattrs: Vec::new(),
    }
}

fn link(path: &str, kind: Kind, to: &str) -> Entry {
    Entry { link: to.into(), ..entry(path, kind) }
}

fn directory(path: &str) -> Entry {
    Entry { mode: 0o755, ..entry(path, Kind::Directory) }
}

fn archive(entries: &[(Entry, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut tar = Writer::new(&mut bytes);
    for (entry, data) in entries {
        let stored = data.len() as u64;
        tar.entry(&Entry { size: stored, stored, ..entry.clone() }, &mut &data[..]).unwrap();
    }
    tar.finish().unwrap();
    bytes
}

/// A directory to unpack in, with something beside it that must stay as it is.
struct Scene {
    temporary: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        fs::create_dir_all(temporary.path().join("in")).unwrap();
        fs::create_dir_all(temporary.path().join("out/below")).unwrap();
        fs::write(temporary.path().join("out/file"), "sentinel").unwrap();
        fs::write(temporary.path().join("out/below/file"), "sentinel").unwrap();
        Self { temporary }
    }

    fn inside(&self) -> std::path::PathBuf {
        self.temporary.path().join("in")
    }

    fn unpack(&self, bytes: &[u8], options: &Options) -> Result<Unpacked, Error> {
        unpack(bytes, File::open(self.inside()).unwrap(), options)
    }

    fn outside(&self) -> Vec<String> {
        let mut seen = described(&self.temporary.path().join("out"));
        let names = fs::read_dir(self.temporary.path()).unwrap().map(|entry| entry.unwrap().file_name());
        seen.extend(names.map(|name| name.into_string().unwrap()));
        seen.sort();
        seen
    }
}

/// All that there is to say about a tree.
pub(crate) fn described(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rest = vec![dir.to_owned()];
    while let Some(path) = rest.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        let target = fs::read_link(&path).unwrap_or_default();
        let size = if meta.is_dir() { 0 } else { meta.len() };
        // Links: only files can have several names.
        let links = if meta.is_dir() { 1 } else { meta.nlink() };
        lines.push(format!(
            "{} {:o} {}:{} {}.{} {size} {links} {target:?} {content:?}",
            path.strip_prefix(dir).unwrap().display(),
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
        ));
        if meta.is_dir() {
            rest.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    lines.sort();
    lines
}

fn both() -> [Options; 2] {
    // As whoever runs the tests.
    [Options::copy(), Options { owners: false, ..Options::image() }]
}

#[test]
fn nothing_is_written_outside_by_name_or_link() {
    let out = |scene: &Scene| scene.temporary.path().join("out").to_str().unwrap().to_owned();
    for options in both() {
        let scene = Scene::new();
        let before = scene.outside();
        let hostile: Vec<Vec<(Entry, &[u8])>> = vec![
            vec![(entry("../out/file", Kind::File), b"x")],
            vec![(entry("a/../../out/file", Kind::File), b"x")],
            vec![(entry(&format!("{}/file", out(&scene)), Kind::File), b"x")],
            vec![(link("l", Kind::Symlink, "../out"), b""), (entry("l/file", Kind::File), b"x")],
            vec![(link("m", Kind::Symlink, &out(&scene)), b""), (entry("m/file", Kind::File), b"x")],
            vec![(link("n", Kind::Symlink, "../out/file"), b""), (entry("n", Kind::File), b"x")],
            vec![(link("h", Kind::HardLink, "../out/file"), b""), (entry("h", Kind::File), b"x")],
            vec![(link("o", Kind::Symlink, "../out"), b""), (link("g", Kind::HardLink, "o/file"), b"")],
            vec![(link("p", Kind::Symlink, "../out"), b""), (Entry { mode: 0o777, ..directory("p") }, b"")],
            vec![(link("q", Kind::Symlink, "/proc/self/cwd"), b""), (entry("q/file", Kind::File), b"x")],
            vec![(link("r", Kind::Symlink, "../out"), b""), (directory("r/below/new"), b"")],
        ];
        for entries in hostile {
            let _ = scene.unpack(&archive(&entries), &options);
            assert_eq!(scene.outside(), before, "{entries:?}");
        }
    }
}

#[test]
fn links_in_a_root_are_followed_as_the_guest_would() {
    let scene = Scene::new();
    let bytes = archive(&[
        (directory("usr/lib"), b""),
        (link("lib", Kind::Symlink, "/usr/lib"), b""),
        (entry("lib/x", Kind::File), b"1"),
        (link("up", Kind::Symlink, "../../../usr"), b""),
        (entry("up/y", Kind::File), b"2"),
    ]);
    let [copy, root] = both();
    scene.unpack(&bytes, &root).unwrap();
    assert_eq!(fs::read(scene.inside().join("usr/lib/x")).unwrap(), b"1");
    assert_eq!(fs::read(scene.inside().join("usr/y")).unwrap(), b"2");
    assert!(matches!(Scene::new().unpack(&bytes, &copy), Err(Error::Outside { .. })));
}

#[test]
fn devices_are_left_out_and_privileges_are_asked_for() {
    let setuid = Entry { mode: 0o4755, ..entry("su", Kind::File) };
    let mut bytes = archive(&[(setuid, b"x"), (entry("pipe", Kind::Fifo), b"")]);
    let mut header = bytes[..512].to_vec();
    header[156] = b'3';
    let sum: u32 = header
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
        .sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header[124..136].copy_from_slice(b"00000000001\0");
    bytes.splice(0..0, header);
    for options in both() {
        let scene = Scene::new();
        let done = scene.unpack(&bytes, &options).unwrap();
        assert_eq!((done.entries, done.devices, done.bytes), (3, 1, 1));
        let mode = fs::metadata(scene.inside().join("su")).unwrap().mode() & 0o7777;
        assert_eq!(mode, if options.privileges { 0o4755 } else { 0o755 });
        assert!(fs::metadata(scene.inside().join("pipe")).unwrap().file_type().is_fifo());
    }
}

#[test]
fn each_limit_is_kept_before_it_is_passed() {
    let limits = Limits { leave: 0, ..Limits::default() };
    let bytes = archive(&[(entry("a", Kind::File), &[1; 600]), (entry("b/c/d", Kind::File), &[2; 600])]);
    let with = |limits: Limits| Scene::new().unpack(&bytes, &Options { limits, ..Options::copy() });
    with(limits).unwrap();
    let failed = |limits: Limits| with(limits).unwrap_err();
    assert!(matches!(failed(Limits { bytes: 1199, ..limits }), Error::TooLarge { limit: 1199 }));
    assert!(matches!(failed(Limits { entries: 1, ..limits }), Error::TooMany { limit: 1 }));
    assert!(matches!(failed(Limits { depth: 2, ..limits }), Error::TooDeep { limit: 2, .. }));
    assert!(matches!(failed(Limits { leave: u64::MAX, ..limits }), Error::NoRoom { leave: u64::MAX, .. }));
}

#[test]
fn holes_stay_holes_in_every_way_to_write_them() {
    let source = tempfile::tempdir().unwrap();
    let file = File::create(source.path().join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"start", 0).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[7; 9000], 700 << 20).unwrap();
    file.set_len(5 << 30).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let mut command = std::process::Command::new("tar");
        command.args(["-cS"]).args(format).arg("-C").arg(source.path()).arg("sparse");
        let bytes = command.output().unwrap().stdout;
        assert!(bytes.len() < 1 << 20, "{format:?}");
        let scene = Scene::new();
        scene.unpack(&bytes, &Options::copy()).unwrap();
        let got = File::open(scene.inside().join("sparse")).unwrap();
        let meta = got.metadata().unwrap();
        assert_eq!(meta.len(), 5 << 30, "{format:?}");
        assert!(meta.blocks() * 512 < 1 << 20, "{format:?}");
        let mut bytes = [0; 9000];
        std::os::unix::fs::FileExt::read_exact_at(&got, &mut bytes, 700 << 20).unwrap();
        assert_eq!(bytes, [7; 9000], "{format:?}");
    }
}

#[test]
fn layers_take_away_what_is_below_them_and_nothing_of_their_own() {
    let scene = Scene::new();
    let options = Options { owners: false, whiteouts: true, ..Options::image() };
    let lower = archive(&[
        (entry("gone/deep/file", Kind::File), b"1"),
        (entry("stays", Kind::File), b"2"),
        (entry("opaque/old", Kind::File), b"3"),
        (entry("opaque/dir/old", Kind::File), b"4"),
        (directory("becomes-file/x"), b""),
        (link("link", Kind::Symlink, "opaque"), b""),
    ]);
    scene.unpack(&lower, &options).unwrap();
    let upper = archive(&[
        (entry(".wh.gone", Kind::File), b""),
        (entry(".wh.never-there", Kind::File), b""),
        (entry("opaque/dir/new", Kind::File), b"5"),
        (entry("opaque/new", Kind::File), b"6"),
        (entry("opaque/.wh..wh..opq", Kind::File), b""),
        (entry("becomes-file", Kind::File), b"7"),
        (entry("link/.wh.new", Kind::File), b""),
        (entry(".wh..wh.plnk", Kind::File), b""),
    ]);
    scene.unpack(&upper, &options).unwrap();
    let names: Vec<String> =
        described(&scene.inside()).iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(
        names,
        ["", "becomes-file", "link", "opaque", "opaque/dir", "opaque/dir/new", "opaque/new", "stays"]
    );
    for name in [".wh.", ".wh..", ".wh..."] {
        assert!(scene.unpack(&archive(&[(entry(name, Kind::File), b"")]), &options).is_err(), "{name}");
    }
}

#[test]
fn what_gnu_tar_packs_comes_out_the_same_and_the_other_way_round() {
    let source = tempfile::tempdir().unwrap();
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(200));
    fs::create_dir_all(source.path().join("d".repeat(150))).unwrap();
    fs::write(source.path().join(&long), [3; 1000]).unwrap();
    symlink("x".repeat(300), source.path().join("link")).unwrap();
    fs::hard_link(source.path().join(&long), source.path().join("other")).unwrap();
    fs::set_permissions(source.path().join("other"), fs::Permissions::from_mode(0o601)).unwrap();
    for format in ["gnu", "pax"] {
        let mut command = std::process::Command::new("tar");
        command.arg("-c").arg(format!("--format={format}")).arg("-C").arg(source.path()).arg(".");
        let scene = Scene::new();
        scene.unpack(&command.output().unwrap().stdout, &Options::copy()).unwrap();
        let whole = |lines: Vec<String>| -> Vec<String> {
            // GNU's own format has no fractions of seconds, and the copy keeps its directory as it was.
            lines
                .into_iter()
                .filter(|line| !line.starts_with(' '))
                .map(|line| line.split_once(' ').unwrap().0.to_owned())
                .collect()
        };
        assert_eq!(whole(described(&scene.inside())), whole(described(source.path())), "{format}");
    }
    let mut bytes = Vec::new();
    let packing = Packing { from: ".".into(), name: ".".into(), owners: true };
    pack(File::open(source.path()).unwrap(), &mut bytes, &packing).unwrap();
    let scene = Scene::new();
    let mut tar = std::process::Command::new("tar")
        .arg("-xp")
        .arg("-C")
        .arg(scene.inside())
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut tar.stdin.take().unwrap(), &bytes).unwrap();
    assert!(tar.wait().unwrap().success());
    assert_eq!(described(&scene.inside()), described(source.path()));
}

#[test]
fn one_file_is_packed_under_another_name() {
    let scene = Scene::new();
    let mut bytes = Vec::new();
    let packing = Packing { from: "out/file".into(), name: "renamed".into(), owners: false };
    let done = pack(File::open(scene.temporary.path()).unwrap(), &mut bytes, &packing).unwrap();
    assert_eq!((done.entries, done.bytes), (1, 8));
    scene.unpack(&bytes, &Options::copy()).unwrap();
    assert_eq!(fs::read(scene.inside().join("renamed")).unwrap(), b"sentinel");
}

#[test]
fn removal_goes_deep_and_follows_no_link() {
    let scene = Scene::new();
    let before = scene.outside();
    let deep = scene.inside().join("d/".repeat(400));
    fs::create_dir_all(&deep).unwrap();
    symlink(scene.temporary.path().join("out"), scene.inside().join("d/link")).unwrap();
    fs::set_permissions(scene.inside().join("d/d/d"), fs::Permissions::from_mode(0o000)).unwrap();
    let dir = File::open(scene.inside()).unwrap();
    remove(&dir, Path::new("d")).unwrap();
    remove(&dir, Path::new("d")).unwrap();
    assert_eq!(fs::read_dir(scene.inside()).unwrap().count(), 0);
    assert_eq!(scene.outside(), before);
    for name in ["..", ".", "a/b", ""] {
        assert!(remove(&dir, Path::new(name)).is_err(), "{name}");
    }
}

/// Names that meet each other often, and lead out often.
fn name() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "a",
        "b",
        "c",
        "..",
        ".",
        "",
        "out",
        "in",
        ".wh.a",
        ".wh..wh..opq",
        ".wh...",
    ]);
    prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"))
}

fn hostile() -> impl Strategy<Value = (Entry, Vec<u8>)> {
    let kind =
        prop::sample::select(vec![Kind::File, Kind::Directory, Kind::Symlink, Kind::HardLink, Kind::Fifo]);
    (name(), kind, name(), 0..0o10000_u32, prop::collection::vec(any::<u8>(), 0..20)).prop_map(
        |(path, kind, to, mode, data)| {
            let data = if kind == Kind::File { data } else { Vec::new() };
            (Entry { mode, link: to.into(), ..entry(&path, kind) }, data)
        },
    )
}

proptest! {
    #[test]
    fn hostile_archives_touch_nothing_outside(entries in prop::collection::vec(hostile(), 1..20), which in 0..3_usize) {
        let scene = Scene::new();
        let before = scene.outside();
        let [copy, root] = both();
        let options = [copy, root, Options { whiteouts: true, ..root }][which];
        let entries: Vec<(Entry, &[u8])> = entries.iter().map(|(entry, data)| (entry.clone(), &data[..])).collect();
        // One at a time too, so that an error does not end it.
        let _ = scene.unpack(&archive(&entries), &options);
        for entry in &entries {
            let _ = scene.unpack(&archive(std::slice::from_ref(entry)), &options);
        }
        prop_assert_eq!(scene.outside(), before);
        // Whoever is not root could not remove what may not be entered.
        for name in fs::read_dir(scene.inside()).unwrap() {
            remove(File::open(scene.inside()).unwrap(), Path::new(&name.unwrap().file_name())).unwrap();
        }
    }

    #[test]
    fn damaged_archives_end(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut in any::<prop::sample::Index>()) {
        let mut bytes = archive(&[(entry(&"long/".repeat(40), Kind::File), b"data"), (link("l", Kind::Symlink, &"x".repeat(200)), b"")]);
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len()));
        let mut tar = super::tar::Tar::new(&bytes[..]);
        for _ in 0..100 {
            match tar.next() {
                Ok(Some(_)) => {}
                _ => break,
            }
        }
    }

    #[test]
    fn trees_come_back_as_they_were(files in prop::collection::btree_map("[a-c]{1,2}/[a-z \u{e4}]{1,120}", (prop::collection::vec(any::<u8>(), 0..2000), 0..0o1000_u32, any::<u32>(), 0..1_000_000_000_u32), 0..8)) {
        let source = tempfile::tempdir().unwrap();
        for (path, (content, mode, seconds, nanoseconds)) in &files {
            let path = source.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::new((*seconds).into(), *nanoseconds);
            File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode | 0o400)).unwrap();
        }
        let mut bytes = Vec::new();
        let packing = Packing { from: ".".into(), name: ".".into(), owners: true };
        pack(File::open(source.path()).unwrap(), &mut bytes, &packing).unwrap();
        let scene = Scene::new();
        let options = Options { owners: false, ..Options::image() };
        scene.unpack(&bytes, &options).unwrap();
        prop_assert_eq!(described(&scene.inside()), described(source.path()));
    }
}

#[test]
fn a_stream_that_is_no_archive_is_said_to_be_none() {
    for bytes in [&b""[..], &[1; 4096], &[0x7f; 100]] {
        let failed = Scene::new().unpack(bytes, &Options::copy()).unwrap_err();
        assert!(matches!(failed, Error::Format { at: 0, .. }), "{failed}");
    }
    // The end comes in the midst of a file, which is more than its padding.
    let bytes = archive(&[(entry("a", Kind::File), &[1; 2000])]);
    Scene::new().unpack(&bytes[..512 + 2000], &Options::copy()).unwrap();
    Scene::new().unpack(&bytes[..512 + 2040], &Options::copy()).unwrap();
    let failed = Scene::new().unpack(&bytes[..1500], &Options::copy()).unwrap_err();
    assert!(matches!(failed, Error::Format { at: 1500, .. }), "{failed}");
}
