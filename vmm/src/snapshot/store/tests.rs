//! The store on a storage that fails at every operation, one after the other: nothing that was there before is ever lost, and a sweep
//! tidies up behind whatever happened.

use std::ops::ControlFlow;
use std::path::Path;

use devices::storage::faulty::Fault;

use super::super::Record;
use super::testing::{Clusters, Pages, World, id};
use super::*;

/// Snapshots 1 ← 2 ← 3 and 1 ← 4 of one VM, whose disk has the layers 11 ← 12 ← 13 ← 20 and 11 ← 14.
pub(super) fn family() -> World {
    let world = World::new();
    world.layer(11, None, &[(0, 1), (1, 1)]).unwrap();
    world.layer(12, Some(11), &[(1, 2)]).unwrap();
    world.layer(13, Some(12), &[(2, 3)]).unwrap();
    world.layer(20, Some(13), &[(0, 9)]).unwrap();
    world.layer(14, Some(11), &[(2, 4)]).unwrap();
    world.user(100, Some(3), Some(20), false);
    world.snapshot(1, 100, None, &[(0, 1), (1, 1), (2, 1)]).unwrap();
    world.snapshot(2, 100, Some(1), &[(1, 2), (3, 2), (4, 2)]).unwrap();
    world.snapshot(3, 100, Some(2), &[(2, 0), (4, 3)]).unwrap();
    world.snapshot(4, 100, Some(1), &[(7, 4)]).unwrap();
    world
}

/// What memory and disk are at each.
const POINTS: [(u64, Pages, Clusters); 4] = [
    (1, [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0]),
    (2, [1, 2, 1, 2, 2, 0, 0, 0], [1, 2, 0]),
    (3, [1, 2, 0, 2, 3, 0, 0, 0], [1, 2, 3]),
    (4, [1, 1, 1, 0, 0, 0, 0, 4], [1, 1, 4]),
];
/// What the VM's own disk holds.
const TOP: (u64, Clusters) = (20, [9, 2, 3]);
/// What it holds after a rollback to 2.
const ROLLED_BACK: (u64, Clusters) = (21, [1, 2, 0]);

/// Every snapshot that is seen, and is one of those above, has the memory and the disk that it was made with; and so has the VM.
fn check(world: &World, must: &[u64], what: &str) {
    let seen = world.seen();
    for number in must {
        assert!(seen.contains(number), "{what}: snapshot {number} is lost; there are {seen:?}");
    }
    for (number, pages, clusters) in POINTS.iter().filter(|(number, ..)| seen.contains(number)) {
        assert_eq!(world.memory(*number).unwrap(), *pages, "{what}: snapshot {number}");
        assert_eq!(world.disk(number + 10), *clusters, "{what}: snapshot {number}");
    }
    for user in world.users().unwrap().into_iter().filter(|user| user.record.disks != [None]) {
        let disk = if user.record.disks == [Some(id(TOP.0))] { TOP } else { ROLLED_BACK };
        assert_eq!(
            (user.record.disks, world.disk(disk.0)),
            (vec![Some(id(disk.0))], disk.1),
            "{what}: the VM's disk"
        );
    }
}

/// Remove these, as far as they are there.
fn remove(world: &World, numbers: &[u64]) -> Result<(), StoreError> {
    for number in numbers {
        match world.store.mark_removed(id(*number)) {
            Err(StoreError::Unknown(_)) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Do `act` in a world like `make`'s with each fault at each operation, as long as that makes a difference. `must` are the
/// snapshots that may not be lost.
pub(super) fn with_every_fault(make: fn() -> World, act: fn(&World) -> Result<(), StoreError>, must: &[u64]) {
    let faults = [|at| Fault::Eio { at }, |at| Fault::Full { at }, |at| Fault::PowerOff { at }];
    for (kind, fault) in faults.into_iter().enumerate() {
        let mut step = 0;
        while one_fault(make, act, must, fault, step, kind).is_continue() {
            step += 1;
        }
        assert!(step > 3, "nothing is done");
    }
}

fn one_fault(
    make: fn() -> World,
    act: fn(&World) -> Result<(), StoreError>,
    must: &[u64],
    fault: fn(u64) -> Fault,
    step: u64,
    kind: usize,
) -> ControlFlow<()> {
    let world = make();
    let begin = world.storage.operations();
    let fault = fault(begin + step);
    world.storage.plan(Some(fault));
    let result = act(&world);
    if world.storage.operations() <= begin + step {
        // It went by before the fault.
        result.unwrap();
        return ControlFlow::Break(());
    }
    let what = format!("fault {kind} {fault:?} at step {step}");
    world.storage.plan(None);
    let worlds: Vec<World> = if world.storage.is_off() {
        vec![world.after(world.storage.after_power_cut(step))]
    } else {
        vec![world.after(world.storage.after_kill())]
    };
    for after in worlds {
        check(&after, must, &what);
        after.sweep().unwrap_or_else(|error| panic!("{what}: {error:?}"));
        check(&after, must, &format!("{what}, swept"));
        assert!(after.is_tidy(), "{what}: {:?}", after.storage.files());
        // And all can be done again.
        act(&after).unwrap();
        after.sweep().unwrap();
        assert!(after.is_tidy(), "{what}, again: {:?}", after.storage.files());
    }
    ControlFlow::Continue(())
}

#[test]
fn a_snapshot_that_fails_leaves_nothing_and_takes_nothing_with_it() {
    let act = |world: &World| match world.store.get(id(9)) {
        Ok(_) => Ok(()),
        Err(_) => {
            world.empty_layer(19, 13)?;
            world.snapshot(9, 100, Some(3), &[(5, 9)])
        }
    };
    with_every_fault(family, act, &[1, 2, 3, 4]);
}

#[test]
fn a_snapshot_that_was_made_survives_a_power_cut() {
    let world = family();
    world.layer(19, Some(13), &[(1, 9)]).unwrap();
    world.snapshot(9, 100, Some(3), &[(5, 9)]).unwrap();
    for seed in 0..16 {
        let after = world.after(world.storage.after_power_cut(seed));
        assert_eq!(after.memory(9).unwrap(), [1, 2, 0, 2, 3, 9, 0, 0]);
        assert_eq!(after.disk(19), [1, 9, 3]);
    }
}

#[test]
fn removing_and_merging_in_the_middle_harms_no_child() {
    let act = |world: &World| {
        remove(world, &[2])?;
        world.sweep().map(drop)
    };
    with_every_fault(family, act, &[1, 3, 4]);
}

#[test]
fn removing_a_leaf_and_then_its_parent_harms_nobody() {
    let act = |world: &World| {
        remove(world, &[3, 2])?;
        world.sweep().map(drop)
    };
    with_every_fault(family, act, &[1, 4]);
}

/// Put the VM 100 back to the snapshot 2, as its process does: a new top, the record, and then the old top goes.
fn roll_back(world: &World) -> Result<(), StoreError> {
    let path = Path::new("/vm/layers.json");
    let old = Record::read(&world.storage, path)?;
    if world.storage.list(&world.store.places().layers()).is_ok_and(|all| !all.contains(&layer_name(21))) {
        let _pin = world.store.pin()?;
        world.empty_layer(21, 12)?;
        let layers = world.store.places().layers();
        world.storage.sync_dir(&layers).map_err(StoreError::io("sync", &layers))?;
    }
    let mut record = Record::new(id(100), vec![Some(id(21))]);
    record.parent = Some(id(2));
    record.write(&world.storage, path)?;
    match old {
        Some(old) if old != record => world.store.drop_tops(&old),
        _ => Ok(()),
    }
}

fn layer_name(number: u64) -> std::ffi::OsString {
    format!("{}.qcow2", id(number)).into()
}

#[test]
fn a_vm_that_is_rolled_back_has_its_old_disk_or_its_new_one() {
    let make = || {
        let world = family();
        world.storage.create_dir(Path::new("/vm")).unwrap();
        world.storage.sync_dir(Path::new("/")).unwrap();
        let before = world.users.lock().unwrap()[&100].0.clone();
        before.write(&world.storage, Path::new("/vm/layers.json")).unwrap();
        world.users.lock().unwrap().clear();
        world
    };
    with_every_fault(make, roll_back, &[1, 2, 3, 4]);
}

#[test]
fn a_removed_snapshot_with_two_children_stays_until_one_is_left() {
    let world = family();
    world.store.mark_removed(id(1)).unwrap();
    world.sweep().unwrap();
    assert_eq!(world.store.ids().unwrap(), [1, 2, 3, 4].map(id));
    assert_eq!(world.seen(), [2, 3, 4]);
    check(&world, &[2, 3, 4], "hidden");
    world.store.mark_removed(id(4)).unwrap();
    let swept = world.sweep().unwrap();
    assert_eq!((swept.snapshots, world.store.ids().unwrap()), (2, [2, 3].map(id).to_vec()));
    check(&world, &[2, 3], "merged");
    assert_eq!(world.store.get(id(2)).unwrap().parent, None);
}

#[test]
fn a_running_vm_keeps_the_snapshot_that_it_is_on() {
    let world = family();
    world.user(100, Some(3), Some(20), true);
    world.store.mark_removed(id(3)).unwrap();
    world.sweep().unwrap();
    assert!(world.store.get(id(3)).is_ok());
    world.layer(21, Some(12), &[]).unwrap();
    world.user(100, Some(2), Some(21), true);
    world.sweep().unwrap();
    assert!(matches!(world.store.get(id(3)), Err(StoreError::Unknown(_))));
    check(&world, &[1, 2, 4], "moved on");
    let left = world.storage.list(&world.store.places().layers()).unwrap();
    assert_eq!(left.len(), 4, "the layers 13 and 20 are gone: {left:?}");
}

#[test]
fn a_layer_that_a_vm_is_booted_with_stays_without_its_snapshot() {
    let world = family();
    world.store.mark_removed(id(3)).unwrap();
    world.layer(21, Some(12), &[]).unwrap();
    world.user(100, Some(2), Some(21), true);
    let users = || {
        let mut users = world.users()?;
        users.iter_mut().for_each(|user| user.spec = format!("path = \"/data/layers/{}.qcow2\"", id(13)));
        Ok(users)
    };
    world.store.sweep(&users, &mut |_, _| {}).unwrap();
    assert!(matches!(world.store.get(id(3)), Err(StoreError::Unknown(_))));
    assert!(world.storage.exists(&world.store.places().layer(id(13))).unwrap());
}

#[test]
fn snapshots_of_a_vm_that_is_gone_go_but_for_what_others_need() {
    let world = family();
    world.layer(15, Some(12), &[(0, 5)]).unwrap();
    world.layer(22, Some(15), &[]).unwrap();
    world.user(200, Some(2), Some(15), true);
    world.snapshot(5, 200, Some(2), &[(6, 5)]).unwrap();
    world.users.lock().unwrap().remove(&100);
    world.user(200, Some(5), Some(22), true);
    world.sweep().unwrap();
    // 1 and 2 are merged into 5, and 11 and 12 into 15.
    assert_eq!(world.store.ids().unwrap(), [id(5)]);
    assert_eq!(world.memory(5).unwrap(), [1, 2, 1, 2, 2, 0, 5, 0]);
    assert_eq!(world.disk(22), [5, 2, 0]);
    assert_eq!(world.storage.list(&world.store.places().layers()).unwrap().len(), 2);
}

#[test]
fn nothing_is_freed_while_a_manifest_cannot_be_read() {
    let world = family();
    // 13 is named by a manifest alone.
    world.layer(21, Some(12), &[]).unwrap();
    world.user(100, Some(2), Some(21), false);
    world.store.mark_removed(id(4)).unwrap();
    let path = world.store.file(id(3), Manifest::FILE);
    let file = world.store.storage().open(&path, true).unwrap();
    file.write_all_at(b"#", 20).unwrap();
    let error = world.sweep().unwrap_err();
    assert!(error.to_string().contains("manifest.json"), "{error}");
    assert!(world.store.get(id(4)).is_ok());
    assert_eq!(world.store.remove_damaged().unwrap().len(), 1);
    world.sweep().unwrap();
    assert_eq!(world.store.ids().unwrap(), [1, 2].map(id));
    check(&world, &[1, 2], "swept");
}

#[test]
fn what_cannot_be_merged_keeps_nothing_else_waiting() {
    let world = family();
    let path = world.store.file(id(2), "memory-2");
    world.store.storage().open(&path, true).unwrap().write_all_at(b"?", 4096 + 5).unwrap();
    remove(&world, &[1, 2, 4]).unwrap();
    let error = world.sweep().unwrap_err();
    let mut chain = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    assert!(chain.any(|error| error.to_string().contains("memory-2")), "{error:?}");
    // 4 is gone for all that, and its layer.
    assert!(matches!(world.store.get(id(4)), Err(StoreError::Unknown(_))));
    assert!(!world.storage.exists(&world.store.places().layer(id(14))).unwrap());
    assert_eq!(world.disk(20), TOP.1);
}

#[test]
fn damage_is_found_before_anything_is_changed_and_the_file_is_named() {
    for (number, name) in [(1, "memory-1"), (1, "index-1"), (3, "memory-3"), (3, "index-3")] {
        let world = family();
        let path = world.store.file(id(number), name);
        let len = world.storage.content(&path).unwrap().len() as u64;
        for damage in 0..2 {
            let file = world.store.storage().open(&path, true).unwrap();
            if damage == 0 {
                file.write_all_at(b"?", if name.starts_with('m') { 4096 * 2 + 5 } else { len / 2 }).unwrap();
            } else {
                file.set_len(len - 1).unwrap();
            }
            let verified = world.store.verify(id(3), &mut |_, _| {});
            // The third page of the last snapshot is one of its holes.
            if (number, damage, name) == (3, 0, "memory-3") {
                continue;
            }
            let error = verified.unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("s3"), "{error}");
        }
    }
}

#[test]
fn a_layer_that_was_changed_is_found_wherever_it_is_in_the_chain() {
    for layer in [11, 12, 13] {
        let world = family();
        let path = world.store.places().layer(id(layer));
        let file = world.store.storage().open(&path, true).unwrap();
        file.write_all_at(b"?", file.len().unwrap() - 100).unwrap();
        let error = world.store.verify(id(3), &mut |_, _| {}).unwrap_err().to_string();
        assert!(error.contains(&format!("{}.qcow2 is damaged", id(layer))), "{error}");
        world.storage.remove_file(&path).unwrap();
        let error = world.store.verify(id(3), &mut |_, _| {}).unwrap_err().to_string();
        assert!(error.contains(&format!("{}.qcow2 is damaged", id(layer))), "{error}");
    }
}

#[test]
fn a_snapshot_of_another_processor_or_a_newer_skiff_is_told_from_a_damaged_one() {
    let world = family();
    let manifest = world.store.get(id(4)).unwrap();
    world.store.put(&Manifest { arch: "aarch64".to_owned(), ..manifest.clone() }).unwrap();
    let error = world.store.verify(id(4), &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("was taken on aarch64"), "{error}");
    world.store.put(&Manifest { format: 2, ..manifest }).unwrap();
    let error = world.store.verify(id(4), &mut |_, _| {}).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("format 2, written by a newer skiff"), "{source}");
    assert!(world.store.remove_damaged().unwrap().is_empty());
}

#[test]
fn memory_that_builds_on_itself_is_refused() {
    let world = family();
    let mut manifest = world.store.get(id(1)).unwrap();
    manifest.memory.base = Some(id(3));
    world.store.put(&manifest).unwrap();
    assert!(matches!(world.store.verify(id(3), &mut |_, _| {}), Err(StoreError::Loop(_))));
}
