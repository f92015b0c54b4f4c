//! The model is proven here, before anything is proven with it.

use super::*;

use std::collections::BTreeSet;

fn path(text: &str) -> &Path {
    Path::new(text)
}

/// The world after each of many power cuts, as `look` sees it.
fn worlds<T: Ord>(storage: &FaultyStorage, look: impl Fn(&FaultyStorage) -> T) -> BTreeSet<T> {
    (0..200).map(|seed| look(&storage.after_power_cut(seed))).collect()
}

fn file(storage: &FaultyStorage, name: &str, content: &[u8]) -> Box<dyn StoredFile> {
    let file = storage.create(path(name)).unwrap();
    file.write_all_at(content, 0).unwrap();
    file
}

#[test]
fn what_is_synced_survives_and_what_is_not_may_not() {
    let storage = FaultyStorage::new();
    let a = file(&storage, "/a", b"first");
    a.sync().unwrap();
    storage.sync_dir(path("/")).unwrap();
    a.write_all_at(b"other", 0).unwrap();
    let contents = worlds(&storage, |after| after.content(path("/a")).unwrap());
    assert_eq!(contents, BTreeSet::from([b"first".to_vec(), b"other".to_vec()]));
    a.sync().unwrap();
    assert_eq!(worlds(&storage, |after| after.content(path("/a")).unwrap()).len(), 1);
    assert_eq!(storage.after_kill().content(path("/a")).unwrap(), b"other");
}

#[test]
fn a_name_and_its_content_are_durable_each_on_its_own() {
    let storage = FaultyStorage::new();
    let a = file(&storage, "/a", b"text");
    a.sync().unwrap();
    assert_eq!(worlds(&storage, |after| after.exists(path("/a")).unwrap()).len(), 2, "the name may be gone");
    let storage = FaultyStorage::new();
    file(&storage, "/a", b"text");
    storage.sync_dir(path("/")).unwrap();
    let contents = worlds(&storage, |after| after.content(path("/a")).unwrap());
    assert_eq!(contents, BTreeSet::from([b"".to_vec(), b"text".to_vec()]), "the content may be gone");
}

#[test]
fn a_large_write_survives_in_whole_sectors() {
    let storage = FaultyStorage::new();
    file(&storage, "/a", &[1; 2048]);
    storage.sync_dir(path("/")).unwrap();
    let contents = worlds(&storage, |after| after.content(path("/a")).unwrap());
    assert!(contents.len() > 4, "parts of it");
    for content in contents {
        assert!(content.chunks(512).all(|sector| sector == [0; 512] || sector == [1; 512]));
    }
}

#[test]
fn a_rename_is_never_half() {
    let storage = FaultyStorage::new();
    file(&storage, "/old", b"old").sync().unwrap();
    file(&storage, "/new", b"new").sync().unwrap();
    storage.sync_dir(path("/")).unwrap();
    storage.rename(path("/new"), path("/old")).unwrap();
    let seen = worlds(&storage, |after| (after.content(path("/old")).unwrap(), after.files().len()));
    assert_eq!(seen, BTreeSet::from([(b"old".to_vec(), 2), (b"new".to_vec(), 1)]));
    storage.sync_dir(path("/")).unwrap();
    assert_eq!(worlds(&storage, |after| after.files()), BTreeSet::from([vec!["/old".into()]]));
}

#[test]
fn a_directory_moves_with_what_is_in_it() {
    let storage = FaultyStorage::new();
    storage.create_dir(path("/x/.new")).unwrap();
    file(&storage, "/x/.new/a", b"text").sync().unwrap();
    for dir in ["/x/.new", "/x", "/"] {
        storage.sync_dir(path(dir)).unwrap();
    }
    storage.rename(path("/x/.new"), path("/x/done")).unwrap();
    let seen = worlds(&storage, FaultyStorage::files);
    assert_eq!(seen, BTreeSet::from([vec!["/x/.new/a".into()], vec!["/x/done/a".into()]]));
    assert!(storage.remove_dir(path("/x/done")).is_err(), "it is not empty");
    storage.remove_file(path("/x/done/a")).unwrap();
    storage.remove_dir(path("/x/done")).unwrap();
    assert!(storage.list(path("/x")).unwrap().is_empty());
}

#[test]
fn an_operation_fails_when_it_is_told_to() {
    let storage = FaultyStorage::new();
    let a = file(&storage, "/a", b"text");
    assert_eq!(storage.operations(), 2);
    storage.plan(Some(Fault::Eio { at: 3 }));
    a.write_all_at(b"more", 0).unwrap();
    assert_eq!(a.sync().unwrap_err().raw_os_error(), Some(libc::EIO));
    a.sync().unwrap();
    storage.plan(Some(Fault::Full { at: 5 }));
    a.sync().unwrap();
    for _ in 0..2 {
        assert_eq!(a.write_all_at(&[1; 1024], 0).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    }
    assert_eq!(storage.content(path("/a")).unwrap(), [1; 512], "in part");
    storage.remove_file(path("/a")).unwrap();
    storage.plan(None);
    file(&storage, "/b", b"room again");
}

#[test]
fn without_power_nothing_works_and_what_was_before_comes_back() {
    let storage = FaultyStorage::new();
    let a = file(&storage, "/a", b"text");
    a.sync().unwrap();
    storage.sync_dir(path("/")).unwrap();
    storage.plan(Some(Fault::PowerOff { at: storage.operations() }));
    a.write_all_at(b"lost", 0).unwrap_err();
    assert!(storage.is_off());
    a.read_exact_at(&mut [0; 4], 0).unwrap_err();
    storage.open(path("/a"), false).unwrap_err();
    storage.plan(None);
    assert!(storage.is_off(), "it stays off");
    let after = storage.after_power_cut(0);
    let mut text = [0; 4];
    after.open(path("/a"), false).unwrap().read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"text");
}

#[test]
fn holes_and_lengths_are_as_on_the_host() {
    let storage = FaultyStorage::new();
    let a = file(&storage, "/a", &[7; 10_000]);
    a.set_len(5000).unwrap();
    a.set_len(1 << 40).unwrap();
    let mut data = [1; 6000];
    a.read_exact_at(&mut data, 0).unwrap();
    assert!(data[..5000] == [7; 5000] && data[5000..] == [0; 1000]);
    a.erase(100, 4500).unwrap();
    a.read_exact_at(&mut data, 0).unwrap();
    assert!(data[..100] == [7; 100] && data[100..4600] == [0; 4500] && data[4600..5000] == [7; 400]);
    a.read_exact_at(&mut data, (1 << 40) - 100).unwrap_err();
    storage.open(path("/a"), false).unwrap().write_all_at(b"x", 0).unwrap_err();
}
