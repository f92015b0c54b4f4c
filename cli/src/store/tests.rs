//! Tests of the store in one process. What needs another one (locks, ends without a word) is in `cli/tests/vms.rs`.

use std::sync::atomic::{AtomicUsize, Ordering};

use vmm::spec::VmSpec;

use super::*;

/// A store with nothing in it.
fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(&dir.path().join("skiff"));
    (dir, store)
}

fn spec() -> VmSpec {
    let text = "kernel = \"/k\"\ncmdline = \"\"\ncpus = 1\nmemory = \"64M\"\ntransport = \"pci\"\nserial = \"null\"\nconsole = \"null\"";
    toml::from_str(text).unwrap()
}

/// A VM that has ended.
fn stopped(store: &Store, name: &str) {
    let held = store.create(Some(name)).unwrap();
    held.write_state(State::new(false), false).unwrap();
    held.write_spec(&spec(), false).unwrap();
    held.ended(End::PoweredOff);
}

fn names(store: &Store) -> Vec<String> {
    store.all().unwrap().iter().map(|look| look.entry.name().to_owned()).collect()
}

#[test]
fn a_store_that_is_not_there_is_empty() {
    let (_dir, store) = store();
    assert!(names(&store).is_empty() && store.find("a").is_none());
    assert!(store.get("a").unwrap_err().to_string().starts_with("there is no VM 'a'"));
}

#[test]
fn of_many_that_want_a_name_one_gets_it() {
    let (_dir, store) = store();
    let won = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                // Kept, since the lock is the whole process's here: only the directory can tell them apart.
                if let Ok(held) = store.create(Some("same")) {
                    // Until its first word is written, another thread takes this one's for a leftover, and sweeps it away.
                    let written = held.write_state(State::new(false), false);
                    let written = written.and_then(|()| held.write_spec(&spec(), false));
                    won.fetch_add(written.is_ok().into(), Ordering::SeqCst);
                    std::mem::forget(held);
                }
            });
        }
    });
    assert!(won.load(Ordering::SeqCst) >= 1);
    assert_eq!(names(&store), ["same"]);
}

#[test]
fn made_up_names_are_all_different() {
    let (_dir, store) = store();
    let held: Vec<_> = (0..50).map(|_| store.create(None).unwrap()).collect();
    let mut names: Vec<_> = held.iter().map(Held::name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 50);
}

#[test]
fn a_name_that_is_taken_is_not_given_again() {
    let (_dir, store) = store();
    stopped(&store, "a");
    stopped(&store, "b");
    for error in [
        store.create(Some("a")).unwrap_err(),
        store.rename("a", "b").unwrap_err(),
        store.rename("a", "a").unwrap_err(),
    ] {
        assert!(error.to_string().contains("already"), "{error}");
    }
    assert!(store.rename("a", "../c").is_err() && store.create(Some("..")).is_err());
    store.rename("a", "c").unwrap();
    assert_eq!(names(&store), ["b", "c"]);
    store.remove("b", false).unwrap();
    assert_eq!(names(&store), ["c"]);
}

#[test]
fn what_never_got_going_is_swept_away_and_what_is_unknown_is_not() {
    let (_dir, store) = store();
    drop(store.create(Some("early")).unwrap());
    let foreign = store.create(Some("foreign")).unwrap();
    fs::write(store.vms().join("foreign/mine.txt"), "").unwrap();
    drop(foreign);
    fs::create_dir(store.vms().join(format!("{GONE}1-a"))).unwrap();
    fs::write(store.vms().join("a file with spaces"), "").unwrap();
    assert_eq!(names(&store), ["foreign"]);
    assert_eq!(store.get("foreign").unwrap().status().word(), "broken");
    store.remove("foreign", true).unwrap();
    let left: Vec<_> = fs::read_dir(store.vms()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["a file with spaces"]);
}

#[test]
fn a_state_is_read_as_it_was_written_and_told_from_a_newer_one() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(State::read(dir.path()), Ok(None));
    let state = State::new(true).ended(End::Failed { error: "no".to_owned() });
    state.write(dir.path(), true).unwrap();
    assert_eq!(State::read(dir.path()), Ok(Some(state)));
    for (text, reason) in [
        ("", "state.json is damaged: EOF"),
        ("{}", "state.json is damaged: missing field `format`"),
        ("{\"format\": 2, \"new\": []}", "state.json has format 2, written by a newer skiff"),
        ("{\"format\": 1}", "state.json is damaged: missing field `created`"),
        ("\u{0}\u{0}", "state.json is damaged: expected value"),
    ] {
        fs::write(dir.path().join("state.json"), text).unwrap();
        assert!(State::read(dir.path()).unwrap_err().starts_with(reason), "{text}");
    }
}

#[test]
fn a_full_disk_leaves_the_old_state() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::new(false);
    state.write(dir.path(), false).unwrap();
    // Nothing can be written aside.
    fs::create_dir(dir.path().join("state.json.new")).unwrap();
    let error = state.ended(End::Killed).write(dir.path(), false).unwrap_err();
    assert!(error.to_string().starts_with("cannot write "), "{error}");
    assert_eq!(State::read(dir.path()), Ok(Some(state)));
}
