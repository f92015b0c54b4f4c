//! Images made by `umoci`, which is nobody's idea of how skiff reads them.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use images::compress;
use images::digest::Digest;
use images::disk;
use images::ext4::{self, Making};
use images::manifest::{Manifest, Source};
use images::oci::{self, Container, Failure, Format, Kernel, Kind};
use images::progress::Progress;
use images::store::Store;

use crate::made::{Container as Made, Paper, content, vm};
use crate::real::Place;

/// A layout with the image `app` in it; none if the program is not installed.
fn layout(dir: &Path) -> Option<std::path::PathBuf> {
    let (layout, bundle) = (dir.join("made"), dir.join("bundle"));
    let image = format!("{}:app", layout.display());
    let run = |words: &[&str]| {
        let output = Command::new("umoci").args(words).output().ok()?;
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Some(())
    };
    let (path, bundle_path) = (layout.to_str()?, bundle.to_str()?);
    if run(&["init", "--layout", path]).is_none() {
        eprintln!("skipped: there is no umoci; cargo xtask setup installs it");
        return None;
    }
    run(&["new", "--image", &image])?;
    for (number, name) in ["one", "two"].iter().enumerate() {
        let bundle = format!("{bundle_path}{number}");
        run(&["unpack", "--rootless", "--image", &image, &bundle])?;
        fs::write(Path::new(&bundle).join("rootfs").join(name), name).unwrap();
        run(&["repack", "--image", &image, &bundle])?;
    }
    run(&[
        "config",
        "--image",
        &image,
        "--config.entrypoint",
        "/one",
        "--config.cmd",
        "two",
        "--config.env",
        "A=b",
    ])?;
    run(&[
        "config",
        "--image",
        &image,
        "--config.exposedports",
        "8080",
        "--config.workingdir",
        "/srv",
        "--config.user",
        "1000",
    ])?;
    Some(layout)
}

#[test]
fn what_umoci_makes_is_imported_and_exported_to_the_byte() {
    let place = Place::new();
    let Some(layout) = layout(place.dir.path()) else { return };
    assert_eq!(oci::recognise(&layout).unwrap(), Some(Kind::Directory));
    let manifest = oci::import(&place.store, &layout, Some("app"), &mut Paper, &mut ()).unwrap();
    let defaults = &manifest.defaults;
    assert_eq!(
        (&defaults.entrypoint[..], &defaults.command[..]),
        (&["/one".to_owned()][..], &["two".to_owned()][..])
    );
    assert_eq!((defaults.user.as_str(), defaults.cwd.as_str()), ("1000", "/srv"));
    assert!(defaults.env.contains(&"A=b".to_owned()));
    assert_eq!(defaults.ports, ["8080/tcp"]);
    let id = place.store.put(&manifest).unwrap();
    let kept = content(&place.store, &id);
    assert_eq!(kept.len(), 4);

    let out = place.dir.path().join("out");
    let kernel_is_left_out =
        oci::export(&place.store, &manifest, None, &out, Format::Layout, &mut ()).unwrap();
    assert!(!kernel_is_left_out);
    for blob in &kept {
        let name = format!("blobs/sha256/{}", blob.digest.hex());
        assert_eq!(fs::read(out.join(&name)).unwrap(), fs::read(layout.join(&name)).unwrap());
    }
    // umoci reads what it made.
    let image = format!("{}:app", out.display());
    let name = "x:app".parse().unwrap();
    fs::remove_dir_all(&out).unwrap();
    oci::export(&place.store, &manifest, Some(&name), &out, Format::Layout, &mut ()).unwrap();
    let back = place.dir.path().join("back");
    let status =
        Command::new("umoci").args(["unpack", "--rootless", "--image", &image]).arg(&back).status().unwrap();
    assert!(status.success());
    assert_eq!(fs::read(back.join("rootfs/two")).unwrap(), b"two");
    let twice = oci::export(&place.store, &manifest, None, &out, Format::Layout, &mut ());
    assert!(twice.is_err(), "what is there is not overwritten");
}

#[test]
fn archives_come_back_to_the_byte() {
    let (place, image) = Place::with(&Made::new(5000));
    let manifest = &image.manifest;
    let name = "app:1".parse().unwrap();
    let (tar, docker) = (place.dir.path().join("layout.tar"), place.dir.path().join("docker.tar"));
    for (path, format) in [(&tar, Format::LayoutTar), (&docker, Format::Docker)] {
        oci::export(&place.store, manifest, Some(&name), path, format, &mut ()).unwrap();
        assert_eq!(oci::recognise(path).unwrap(), Some(Kind::Archive));
        assert!(path.symlink_metadata().unwrap().len() > 15_000);
    }
    let other = Place::new();
    let again = oci::import(&other.store, &tar, None, &mut Paper, &mut ()).unwrap();
    assert!(
        matches!((&again.source, &manifest.source), (Source::Oci { content: a, .. }, Source::Oci { content: b, .. }) if a == b)
    );
    let again = oci::import(&other.store, &docker, Some("app:1"), &mut Paper, &mut ()).unwrap();
    let Source::Oci { content, reference, .. } = &again.source else { panic!("{again:?}") };
    assert_eq!(content[1], self::content(&place.store, &image.id)[1], "the same configuration");
    assert_eq!(reference.as_deref(), Some("app:1"));
    assert_eq!(again.defaults, manifest.defaults);
    let wrong = oci::import(&other.store, &docker, Some("app:2"), &mut Paper, &mut ()).unwrap_err();
    assert!(wrong.to_string().contains("app:1"), "{wrong}");
}

#[test]
fn compressed_archives_are_recognised_and_other_tars_are_not() {
    let (place, image) = Place::with(&Made::new(5000));
    let tar = place.dir.path().join("layout.tar");
    oci::export(&place.store, &image.manifest, None, &tar, Format::LayoutTar, &mut ()).unwrap();
    let packed = place.dir.path().join("packed");
    fs::write(&packed, zstd::encode_all(&fs::read(&tar).unwrap()[..], 1).unwrap()).unwrap();
    assert_eq!(oci::recognise(&packed).unwrap(), Some(Kind::Archive));
    let other = Place::new();
    oci::import(&other.store, &packed, None, &mut Paper, &mut ()).unwrap();
    for bytes in
        [crate::made::tar(&[("bin/sh", b"x"), ("etc/passwd", b"y")]), b"no archive".to_vec(), Vec::new()]
    {
        fs::write(&packed, bytes).unwrap();
        assert_eq!(oci::recognise(&packed).unwrap(), None);
    }
    assert_eq!(oci::recognise(place.dir.path()).unwrap(), None);
}

#[test]
fn a_damaged_layer_is_not_taken() {
    let (container, place) = (Made::new(5000), Place::new());
    let layout = place.dir.path().join("layout");
    container.layout(&layout);
    let layer = layout.join("blobs/sha256").join(Digest::of(&container.layers[0]).hex());
    let mut bytes = fs::read(&layer).unwrap();
    bytes[600] ^= 1;
    fs::write(&layer, &bytes).unwrap();
    oci::import(&place.store, &layout, None, &mut Paper, &mut ()).unwrap_err();
    bytes.pop();
    fs::write(&layer, &bytes).unwrap();
    oci::import(&place.store, &layout, None, &mut Paper, &mut ()).unwrap_err();
    fs::remove_file(&layer).unwrap();
    oci::import(&place.store, &layout, None, &mut Paper, &mut ()).unwrap_err();
}

/// A kernel of paper for the machine that makes disks.
fn find(store: &Store, _: &mut dyn Progress) -> Result<Kernel, Failure> {
    Ok(Kernel { image: store.add_bytes(b"a kernel")?, modules: store.add_bytes(b"modules.")? })
}

#[test]
fn a_vms_image_goes_out_as_one_layer_without_its_kernel_and_comes_back_with_the_same_files() {
    let place = Place::new();
    let path = |name: &str| place.dir.path().join(name);
    fs::create_dir_all(path("tree/etc")).unwrap();
    fs::write(path("tree/etc/os-release"), "PRETTY_NAME=\"Paper 2\"\n").unwrap();
    fs::hard_link(path("tree/etc/os-release"), path("tree/etc/second")).unwrap();
    std::os::unix::fs::symlink("etc/second", path("tree/link")).unwrap();
    let making = Making { label: "root".to_owned(), size: 1 << 30, bytes: 100, entries: 4 };
    ext4::make(&path("tree"), &path("raw"), &making).unwrap();
    let disk = place.store.disk_from_raw(&path("raw"), &mut |_, _| ()).unwrap();
    let mut manifest = vm(&place.store, None);
    manifest.disk.layers = vec![disk];
    manifest.defaults.command = vec!["/etc/second".to_owned()];
    let files = |manifest: &Manifest| {
        let (top, mut tar) = (place.store.blob_path(&manifest.disk.layers[0].digest), Vec::new());
        disk::archive(&top, &manifest.cmdline, &path("work"), &mut tar, &mut ()).unwrap();
        tar
    };
    for (out, format) in [(path("layout"), Format::Layout), (path("docker.tar"), Format::Docker)] {
        assert!(oci::export(&place.store, &manifest, None, &out, format, &mut ()).unwrap());
        let again = oci::import(&place.store, &out, None, &mut Paper, &mut ()).unwrap();
        assert_eq!(again.defaults, manifest.defaults);
        let Source::Oci { content, .. } = &again.source else { panic!("{again:?}") };
        let layer = fs::File::open(place.store.blob_path(&content[2].digest)).unwrap();
        let mut tar = Vec::new();
        compress::Reader::new(layer).unwrap().read_to_end(&mut tar).unwrap();
        assert!(content.len() == 3 && tar == files(&manifest), "{format:?}");
        if rustix::process::geteuid().is_root() {
            let mut machine = Container { agent: b"the agent", kernel: &mut find };
            let again = oci::import(&place.store, &out, None, &mut machine, &mut ()).unwrap();
            assert_eq!(again.os, "Paper 2");
            // But for the first header: mkfs does not keep the time of the top.
            assert!(files(&again)[512..] == files(&manifest)[512..], "{format:?}");
        }
    }
    let left = fs::read_dir(place.dir.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains(".new-"));
    assert_eq!(left.count(), 0);
}

#[test]
fn layers_become_a_disk_with_a_kernel_and_the_agent() {
    let place = Place::new();
    let Some(layout) = layout(place.dir.path()) else { return };
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root makes file systems without the skiff program");
        return;
    }
    let mut machine = Container { agent: b"the agent", kernel: &mut find };
    let manifest = oci::import(&place.store, &layout, Some("app"), &mut machine, &mut ()).unwrap();
    place.store.put(&manifest).unwrap();
    place.store.verify(&manifest, &mut |_, _| {}).unwrap();
    let initrd = fs::read(place.store.blob_path(&manifest.initrd.unwrap().digest)).unwrap();
    assert!(initrd.starts_with(b"modules.") && initrd.windows(9).any(|window| window == b"the agent"));
    let (disk, raw) = (place.store.blob_path(&manifest.disk.layers[0].digest), place.dir.path().join("raw"));
    let convert = Command::new("qemu-img").args(["convert", "-O", "raw"]).args([&disk, &raw]).status();
    assert!(convert.unwrap().success());
    let output = Command::new("/sbin/debugfs").args(["-R", "cat /two"]).arg(&raw).output().unwrap();
    assert_eq!(output.stdout, b"two");
}
