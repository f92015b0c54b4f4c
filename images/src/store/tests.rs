//! Tests of the store as its users see it, of crashes at any step, and of prunes at any moment.

use std::fs;
use std::io::Write as _;
use std::sync::Arc;

use devices::disk::{Disk as OpenDisk, DiskOptions, layer};
use devices::storage::HostStorage;
use devices::storage::faulty::{Fault, FaultyStorage};
use proptest::prelude::*;

use super::*;
use crate::manifest::{Agent, Defaults, Disk, Manifest, SCHEMA, Source};
use crate::name::Name;

/// A store with nothing in it.
fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("images"));
    (dir, store)
}

/// What another process sees of it.
fn another(store: &Store) -> Store {
    Store::open(store.root())
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn manifest(kernel: Blob, layers: Vec<Blob>) -> Manifest {
    Manifest {
        schema: SCHEMA,
        os: "Test".to_owned(),
        created_ms: 1,
        source: Source::Rootfs,
        kernel,
        initrd: None,
        modules: None,
        cmdline: String::new(),
        disk: Disk { layers, size: 1 << 20, grows_to: 1 << 20 },
        agent: Agent::None,
        defaults: Defaults::default(),
    }
}

/// An image whose files are this text's.
fn image(store: &Store, text: &str) -> Result<Digest, StoreError> {
    let kernel = store.add_bytes(format!("the kernel of {text}").as_bytes())?;
    let disk = store.add_bytes(format!("the disk of {text}").as_bytes())?;
    store.put(&manifest(kernel, vec![disk]))
}

fn nobody() -> Result<Needs, StoreError> {
    Ok(Needs::default())
}

fn files(store: &Store, dir: &str) -> Vec<String> {
    store.list_dir(&store.root().join(dir)).unwrap()
}

#[test]
fn the_same_content_is_the_same_file_and_is_read_as_it_was_written() {
    let (_dir, store) = store();
    let text = vec![7; 100_000];
    let blob = store.add_bytes(&text).unwrap();
    assert_eq!((blob.digest, blob.size), (Digest::of(&text), 100_000));
    let scratch = store.scratch().unwrap();
    let moved = scratch.path().join("file");
    fs::write(&moved, &text).unwrap();
    let mut seen = 0;
    assert_eq!(store.adopt(&moved, None, &mut |done| seen = done).unwrap(), blob);
    assert_eq!(files(&store, "blobs"), [file_name(&blob.digest)]);
    assert_eq!(fs::read(store.blob_path(&blob.digest)).unwrap(), text);
    assert!(store.has(&blob).unwrap() && !moved.exists() && seen == 100_000);
    let place = scratch.path().to_owned();
    drop(scratch);
    assert!(!place.exists());
}

#[test]
fn holes_take_no_place_and_count_as_zeroes() {
    use std::os::unix::fs::MetadataExt as _;
    let (_dir, store) = store();
    let mut text = vec![0; 8 << 20];
    text[5 << 20] = 1;
    let blob = store.add_bytes(&text).unwrap();
    assert_eq!(blob.digest, Digest::of(&text));
    let file = store.blob_path(&blob.digest);
    assert_eq!(fs::read(&file).unwrap(), text);
    assert!(fs::metadata(&file).unwrap().blocks() * 512 < 1 << 20);
}

#[test]
fn what_is_not_what_was_announced_leaves_nothing() {
    let (_dir, store) = store();
    let mut draft = store.draft().unwrap();
    draft.write_all(b"other").unwrap();
    let error = draft.commit_as(&Digest::of(b"this")).unwrap_err();
    assert!(matches!(error, StoreError::Mismatch { .. }), "{error}");
    let mut draft = store.draft().unwrap();
    draft.write_all(b"this").unwrap();
    assert_eq!(files(&store, "blobs").len(), 1);
    drop(draft);
    assert!(files(&store, "blobs").is_empty());
}

#[test]
fn images_are_found_by_name_and_by_id_and_what_is_unknown_names_what_is_near() {
    let (_dir, store) = store();
    let error = store.resolve("debian:12").unwrap_err().to_string();
    assert_eq!(error, "there is no image 'debian:12': skiff image build, pull and import make some");
    let (one, two) = (image(&store, "one").unwrap(), image(&store, "two").unwrap());
    store.tag(&name("debian:12"), &one).unwrap();
    store.tag(&name("debian:13"), &two).unwrap();
    store.tag(&name("host.example:5000/team/web"), &two).unwrap();
    for (text, id) in [
        ("debian:12", one),
        ("host.example:5000/team/web:latest", two),
        (&one.hex()[..4], one),
        (&two.to_string(), two),
        (&two.hex(), two),
    ] {
        assert_eq!(store.resolve(text).unwrap().id, id, "{text}");
    }
    assert_eq!(
        store.resolve("debian:13").unwrap().names,
        [name("debian:13"), name("host.example:5000/team/web")]
    );
    for (text, hint) in [
        ("debian", "there is debian:12, debian:13"),
        ("debain:12", "did you mean 'debian:12'?"),
        (&one.hex()[..3], "skiff image ls shows all"),
        ("../names", "skiff image ls shows all"),
    ] {
        let error = store.resolve(text).unwrap_err().to_string();
        assert!(error.contains(hint), "{text}: {error}");
    }
    // A tag moves, and goes.
    store.tag(&name("debian:12"), &two).unwrap();
    assert_eq!(store.resolve("debian:12").unwrap().id, two);
    assert!(store.untag(&name("debian:12")).unwrap() && !store.untag(&name("debian:12")).unwrap());
    let (all, wrong) = store.list().unwrap();
    assert_eq!(all.iter().map(Image::called).collect::<Vec<_>>(), ["debian:13".to_owned(), one.short()]);
    assert!(wrong.is_empty());
}

#[test]
fn an_id_that_two_images_begin_with_is_not_guessed() {
    let (_dir, store) = store();
    let kernel = store.add_bytes(b"k").unwrap();
    let mut first = [const { Vec::new() }; 256];
    for count in 0.. {
        let mut manifest = manifest(kernel, Vec::new());
        manifest.created_ms = count;
        let id = Digest::of(&serde_json::to_vec(&manifest).unwrap());
        // Two bytes of an ID are four digits.
        let begin = u8::from_str_radix(&id.hex()[..2], 16).unwrap();
        first[usize::from(begin)].push((id, manifest));
        let same = |one: &Digest, other: &Digest| one != other && one.hex()[..4] == other.hex()[..4];
        let all = &first[usize::from(begin)];
        if let Some((twin, other)) = all.iter().find(|(other, _)| same(other, &id)) {
            let (_, own) = all.last().unwrap();
            store.put(own).unwrap();
            store.put(other).unwrap();
            let error = store.resolve(&id.hex()[..4]).unwrap_err().to_string();
            assert!(error.contains(&id.short()) && error.contains(&twin.short()), "{error}");
            return;
        }
    }
}

#[test]
fn an_image_needs_its_files_and_damage_is_found() {
    let (_dir, store) = store();
    let missing = Blob { digest: Digest::of(b"gone"), size: 4 };
    let error = store.put(&manifest(missing, Vec::new())).unwrap_err();
    assert!(error.to_string().contains("it is not there"), "{error}");
    let id = image(&store, "one").unwrap();
    let manifest = store.get(&id).unwrap();
    let mut read = 0;
    store.verify(&manifest, &mut |done, _| read = done).unwrap();
    assert_eq!(read, 0, "what was just written is not read again");
    let path = store.blob_path(&manifest.kernel.digest);
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[3] ^= 1;
    fs::write(&path, &bad).unwrap();
    let error = store.verify(&manifest, &mut |_, _| ()).unwrap_err().to_string();
    assert!(error.contains("its content is another") && error.contains(path.to_str().unwrap()), "{error}");
    // The same content mends it.
    store.add_bytes(&good).unwrap();
    store.verify(&manifest, &mut |_, _| ()).unwrap();
    fs::write(&path, &good[1..]).unwrap();
    assert!(matches!(store.verify(&manifest, &mut |_, _| ()), Err(StoreError::Damaged { .. })));
    fs::write(store.manifest_path(&id), "{\"schema\":2}").unwrap();
    assert!(matches!(store.get(&id), Err(StoreError::Damaged { .. })));
    let newer = store.put_text(b"{\"schema\":2,\"new\":true}").unwrap_err();
    assert!(matches!(newer, StoreError::Newer { found: 2, .. }), "{newer}");
}

#[test]
fn a_prune_takes_what_nobody_needs_and_nothing_else() {
    let (_dir, store) = store();
    let maker = another(&store);
    let (named, used, made) =
        (image(&maker, "named").unwrap(), image(&maker, "used").unwrap(), image(&maker, "made").unwrap());
    let stray = maker.add_bytes(b"stray").unwrap();
    store.tag(&name("named"), &named).unwrap();
    // A process that lives has made them all.
    assert_eq!(store.prune(true, nobody).unwrap(), Pruned::default());
    drop(maker);
    let spec =
        format!("kernel = \"{}\"\n", store.blob_path(&store.get(&used).unwrap().kernel.digest).display());
    let needs = || -> Result<Needs, StoreError> {
        let mut needs = Needs::default();
        needs.add_text(&spec);
        Ok(needs)
    };
    let would = store.would_prune(needs).unwrap();
    // Of the image that is used only the file that is named.
    let disk = store.get(&used).unwrap().disk.layers[0];
    let mut images = vec![used, made];
    images.sort();
    assert_eq!(would.images, images);
    assert!(would.blobs.contains(&disk.digest) && would.blobs.contains(&stray.digest));
    assert_eq!(would.blobs.len(), 4);
    assert_eq!(store.prune(true, needs).unwrap(), would);
    assert_eq!(files(&store, "manifests"), [file_name(&named)]);
    assert_eq!(files(&store, "blobs").len(), 3);
    store.verify(&store.get(&named).unwrap(), &mut |_, _| ()).unwrap();
    assert_eq!(store.prune(true, needs).unwrap(), Pruned::default());
}

#[test]
fn what_is_held_stays_until_its_holder_goes() {
    let (_dir, store) = store();
    let id = image(&store, "one").unwrap();
    let one = name("one");
    store.tag(&one, &id).unwrap();
    drop(store.session.lock().unwrap().take());
    let holder = another(&store);
    holder.hold("one").unwrap();
    let blob = another(&store);
    assert!(blob.keep(&store.get(&id).unwrap().kernel).unwrap());
    store.untag(&one).unwrap();
    assert_eq!(store.prune(true, nobody).unwrap(), Pruned::default());
    drop(holder);
    assert_eq!(store.prune(true, nobody).unwrap().images, [id]);
    assert_eq!(files(&store, "blobs").len(), 1);
    drop(blob);
    store.prune(true, nobody).unwrap();
    assert!(files(&store, "blobs").is_empty() && files(&store, "using").is_empty());
}

#[test]
fn drafts_and_scratch_of_the_living_stay_and_those_of_the_dead_go() {
    let (_dir, store) = store();
    let draft = store.draft().unwrap();
    let scratch = store.scratch().unwrap();
    let partial = store.partial("http://x/y").unwrap();
    assert!(matches!(another(&store).partial("http://x/y"), Err(StoreError::Busy { .. })));
    fs::write(store.blobs().join(".new-1-1"), "half").unwrap();
    let dead = store.root().join("scratch/1-1");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("file"), "half").unwrap();
    fs::write(store.root().join("scratch/1-1.owner"), "").unwrap();
    fs::write(store.root().join("partial/other"), "half").unwrap();
    store.prune(false, nobody).unwrap();
    assert!(!dead.exists() && scratch.path().exists());
    assert_eq!((files(&store, "blobs").len(), files(&store, "partial").len()), (1, 2));
    store.prune(true, nobody).unwrap();
    assert_eq!(files(&store, "partial").len(), 1);
    fs::write(partial.path(), "all").unwrap();
    let blob = store.adopt(partial.path(), None, &mut |_| ()).unwrap();
    assert_eq!(blob.digest, Digest::of(b"all"));
    drop(draft);
}

#[test]
fn what_a_killed_process_has_left_half_done_goes_when_the_next_begins() {
    let (_dir, store) = store();
    drop(store.scratch().unwrap());
    let dead = store.root().join("scratch/1-1");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("file"), "half").unwrap();
    fs::write(store.root().join("scratch/1-1.owner"), "").unwrap();
    let living = another(&store).scratch().unwrap();
    assert!(!dead.exists() && living.path().exists());
    let second = store.scratch().unwrap();
    assert!(living.path().exists() && second.path().exists());
    assert_eq!(files(&store, "scratch").len(), 4);
    drop((living, second));
    assert!(files(&store, "scratch").is_empty());
}

#[test]
fn the_cache_keeps_what_it_names_and_a_warm_note_goes_with_its_image() {
    let (_dir, store) = store();
    let maker = another(&store);
    let (kept, gone) = (image(&maker, "kept").unwrap(), image(&maker, "gone").unwrap());
    drop(maker);
    fs::create_dir(store.root().join("cache")).unwrap();
    fs::write(store.root().join("cache/step-1.json"), format!("{{\"on\":\"{kept}\"}}")).unwrap();
    let warm = Warm { snapshot: "1".repeat(16), vm: "2".repeat(16), cpus: 1, memory: 1 << 30 };
    for id in [&kept, &gone] {
        store.set_warm(id, Some(&warm)).unwrap();
    }
    assert_eq!(store.all_warm().unwrap().len(), 2);
    assert_eq!(store.prune(false, nobody).unwrap().images, [gone]);
    assert_eq!(store.all_warm().unwrap(), [(kept, warm)]);
    store.set_warm(&kept, None).unwrap();
    assert_eq!(store.warm(&kept).unwrap(), None);
}

#[test]
fn a_manifest_that_cannot_be_read_stops_a_prune_that_needs_it() {
    let (_dir, store) = store();
    let maker = another(&store);
    let id = image(&maker, "one").unwrap();
    maker.tag(&name("one"), &id).unwrap();
    drop(maker);
    fs::write(store.manifest_path(&id), "{}").unwrap();
    assert!(matches!(store.prune(true, nobody), Err(StoreError::Damaged { .. })));
    assert_eq!(files(&store, "blobs").len(), 2);
    assert_eq!(store.list().unwrap().1.len(), 1);
    store.untag(&name("one")).unwrap();
    store.prune(true, nobody).unwrap();
    assert!(files(&store, "blobs").is_empty());
}

#[test]
fn disks_stand_on_their_siblings_and_a_prune_keeps_what_they_stand_on() {
    let (dir, store) = store();
    let maker = another(&store);
    let raw = dir.path().join("raw");
    let mut content = vec![0; 4 << 20];
    content[..8].copy_from_slice(b"the base");
    fs::write(&raw, &content).unwrap();
    let base = maker.disk_from_raw(&raw, &mut |_, _| ()).unwrap();
    assert!(base.size < 1 << 20, "zeroes take no place: {}", base.size);
    // What a VM has written on it.
    let top = dir.path().join("top.qcow2");
    let on = layer::Base { name: store.blob_path(&base.digest), format: layer::Format::Qcow2 };
    layer::create(&HostStorage, &top, Some(&on), 8 << 20).unwrap();
    let upper = maker.disk_on(&[&top], &base, &mut |_, _| ()).unwrap();
    let path = store.blob_path(&upper.digest);
    let below = layer::backing(&HostStorage, &path).unwrap();
    assert_eq!(below, Some(file_name(&base.digest).into()));
    // Two VMs read it at once.
    let options = DiskOptions { path, readonly: true, direct: false };
    let (one, other) = (OpenDisk::open(&options).unwrap(), OpenDisk::open(&options).unwrap());
    assert_eq!((one.size(), other.size()), (8 << 20, 8 << 20));
    let flat = dir.path().join("flat");
    layer::flatten(&HostStorage, &options.path, &flat, &mut |_, _| ()).unwrap();
    // A manifest that names the upper one only.
    let id = maker.put(&manifest(base, vec![upper])).unwrap();
    drop(maker);
    let needs = || -> Result<Needs, StoreError> {
        let mut needs = Needs::default();
        needs.add(upper.digest);
        Ok(needs)
    };
    let pruned = store.prune(true, needs).unwrap();
    assert_eq!((pruned.images, pruned.blobs), (vec![id], vec![]));
    let qcow2 = store.blob_path(&base.digest);
    assert!(matches!(store.disk_from_raw(&qcow2, &mut |_, _| ()), Err(StoreError::NotRaw { .. })));
}

#[test]
fn many_makers_and_prunes_at_once_lose_nothing() {
    let (_dir, store) = store();
    std::thread::scope(|scope| {
        for maker in 0..4 {
            let store = another(&store);
            scope.spawn(move || {
                for round in 0..10 {
                    // Half of what they make is the same.
                    let own = another(&store);
                    let id = image(&own, &format!("{}", if round % 2 == 0 { round } else { maker })).unwrap();
                    own.tag(&name(&format!("m{maker}:{round}")), &id).unwrap();
                    drop(own);
                    let image = store.resolve(&format!("m{maker}:{round}")).unwrap();
                    store.verify(&image.manifest, &mut |_, _| ()).unwrap();
                }
            });
        }
        let store = another(&store);
        scope.spawn(move || {
            for _ in 0..40 {
                store.prune(true, nobody).unwrap();
            }
        });
    });
    let (all, wrong) = store.list().unwrap();
    assert!(wrong.is_empty());
    assert_eq!(all.iter().map(|image| image.names.len()).sum::<usize>(), 40);
}

/// What a user does: an image in place of another, and a prune.
fn story(store: &Store) -> Result<(), StoreError> {
    let id = image(store, "new")?;
    store.tag(&name("web"), &id)?;
    drop(store.session.lock().unwrap().take());
    store.prune(true, nobody)?;
    Ok(())
}

/// After whatever happened: the name is the old image or the new one, and it is whole.
fn judge(storage: FaultyStorage) {
    let store = Store::with_storage("/images", Arc::new(storage));
    let image = store.resolve("web").unwrap();
    for blob in image.manifest.blobs() {
        let path = store.blob_path(&blob.digest);
        let file = store.storage.open(&path, false).unwrap();
        assert_eq!(blob::hash(&*file, &mut |_| ()).unwrap(), (blob.digest, blob.size));
    }
    assert!(store.list().unwrap().1.is_empty());
    // And it can go on.
    story(&store).unwrap();
    store.resolve("web").unwrap();
    assert_eq!(store.ids().unwrap().len(), 1);
}

#[test]
fn a_crash_at_any_step_leaves_the_old_image_or_the_new_one() {
    let begin = || {
        let storage = FaultyStorage::new();
        let store = Store::with_storage("/images", Arc::new(storage.clone()));
        let id = image(&store, "old").unwrap();
        store.tag(&name("web"), &id).unwrap();
        drop(store);
        storage
    };
    let before = begin();
    let first = before.operations();
    let store = Store::with_storage("/images", Arc::new(before.clone()));
    story(&store).unwrap();
    drop(store);
    let steps = before.operations() - first;
    assert!(steps > 20);
    for at in first..first + steps {
        for fault in [Fault::Eio { at }, Fault::Full { at }, Fault::PowerOff { at }] {
            let storage = begin();
            storage.plan(Some(fault));
            let store = Store::with_storage("/images", Arc::new(storage.clone()));
            // It may well fail.
            let _ = story(&store);
            drop(store);
            storage.plan(None);
            for seed in 0..4 {
                judge(storage.after_power_cut(seed));
            }
            judge(storage.after_kill());
        }
    }
}

proptest! {
    #[test]
    fn every_digest_in_a_text_is_found_and_nothing_else(
        digests in proptest::collection::vec(any::<[u8; 8]>(), 0..5),
        between in "[^0-9a-f]{0,9}",
    ) {
        let digests: Vec<Digest> = digests.iter().map(|bytes| Digest::of(bytes)).collect();
        let mut text = "sha256-short sha256:".to_owned();
        for digest in &digests {
            text.push_str(&format!("{between}{}{between}|", file_name(digest)));
        }
        let mut needs = Needs::default();
        needs.add_text(&text);
        let mut wanted = Needs::default();
        digests.iter().for_each(|digest| wanted.add(*digest));
        prop_assert_eq!(needs, wanted);
    }

    #[test]
    fn no_text_that_is_asked_for_leads_out_of_the_store(text in ".{0,40}") {
        let (_dir, store) = store();
        prop_assert!(store.resolve(&text).is_err());
    }
}
