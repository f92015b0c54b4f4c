//! File systems by the real programs, which every host that makes images has.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

fn made() -> (tempfile::TempDir, std::path::PathBuf) {
    let temporary = tempfile::tempdir().unwrap();
    let tree = temporary.path().join("tree");
    fs::create_dir_all(tree.join("usr/lib")).unwrap();
    fs::write(tree.join("usr/lib/a b"), "content").unwrap();
    symlink("usr/lib", tree.join("lib")).unwrap();
    symlink("x".repeat(100), tree.join("long")).unwrap();
    let image = temporary.path().join("odd?name");
    let making = Making { label: "skiff".to_owned(), size: 2 << 30, bytes: 7, entries: 5 };
    assert_eq!(make(&tree, &image, &making).unwrap().size, 2 << 30);
    (temporary, image)
}

#[test]
fn a_tree_is_in_its_file_system_and_can_be_read_without_mounting_it() {
    let (_temporary, image) = made();
    check(&image, 0).unwrap();
    let fs = Debugfs::open(&image, 0, false).unwrap();
    let stat = fs.stat("/lib/a b").unwrap().unwrap();
    assert_eq!((stat.kind, stat.size, stat.uid), (Kind::File, 7, 0));
    assert_eq!(fs.read("/lib/a b", 7).unwrap(), b"content");
    assert!(matches!(fs.read("/lib/a b", 6), Err(Error::TooLarge { size: 7, limit: 6, .. })));
    assert!(matches!(fs.read("/lib", 100), Err(Error::Missing { .. })));
    assert_eq!(fs.stat("/nothing").unwrap(), None);
    assert_eq!(fs.stat("/lib/a b/c").unwrap(), None);
    assert_eq!(
        (fs.read_link("/lib").unwrap(), fs.read_link("/long").unwrap()),
        ("usr/lib".to_owned(), "x".repeat(100))
    );
    let mut names: Vec<String> = fs.list("/").unwrap().into_iter().map(|entry| entry.name).collect();
    names.sort();
    assert_eq!(names, ["lib", "long", "lost+found", "usr"]);
    assert!(matches!(fs.edit(&[Change::Remove { path: "/long".to_owned() }]), Err(Error::Failed { .. })));
}

#[test]
fn files_are_changed_at_an_offset_and_the_file_system_stays_whole() {
    let (temporary, image) = made();
    let shifted = temporary.path().join("disk");
    let mut out = fs::File::create(&shifted).unwrap();
    std::io::Seek::seek(&mut out, std::io::SeekFrom::Start(1 << 20)).unwrap();
    std::io::copy(&mut fs::File::open(&image).unwrap(), &mut out).unwrap();
    let fs = Debugfs::open(&shifted, 1 << 20, true).unwrap();
    let path = |path: &str| path.to_owned();
    for content in [&b"first"[..], &[7; 100_000]] {
        let content = content.to_vec();
        fs.edit(&[
            Change::Directory { path: path("/lib/skiff/deep") },
            Change::File { path: path("/lib/skiff/deep/agent"), mode: 0o755, content: content.clone() },
            Change::Symlink { path: path("/usr/link"), target: path("lib/a b") },
            Change::Remove { path: path("/long") },
        ])
        .unwrap();
        let stat = fs.stat("/usr/lib/skiff/deep/agent").unwrap().unwrap();
        assert_eq!((stat.mode, stat.uid, stat.gid, stat.size), (0o755, 0, 0, content.len() as u64));
        assert_eq!(fs.read("/usr/lib/skiff/deep/agent", 1 << 20).unwrap(), content);
        assert_eq!(fs.read_link("/usr/link").unwrap(), "lib/a b");
        assert_eq!(fs.stat("/long").unwrap(), None);
        check(&shifted, 1 << 20).unwrap();
    }
    let nowhere = Change::File { path: path("/none/file"), mode: 0o644, content: Vec::new() };
    assert!(matches!(fs.edit(&[nowhere]), Err(Error::Missing { .. })));
    assert!(Debugfs::open(&shifted, 0, false).is_err());
}
