use super::*;

use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use devices::disk::SECTOR;

use crate::digest::Digest;

/// Sizes that no block of any format divides.
const SIZE: u64 = (70 << 20) + 3 * 512;

/// Put bytes into a file that is made by hand.
pub(super) fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// All that a disk holds, extent by extent.
pub(super) fn all_of(disk: &mut dyn Source) -> io::Result<Vec<u8>> {
    let mut content = vec![1; disk.size() as usize];
    let mut at = 0;
    while at < disk.size() {
        let (zero, len) = disk.extent(at, disk.size() - at)?;
        assert!(len > 0 && at + len <= disk.size());
        let part = &mut content[at as usize..(at + len) as usize];
        if zero {
            part.fill(0)
        } else {
            disk.read(at, part)?
        }
        at += len;
    }
    Ok(content)
}

/// Look into a disk that may be damaged at some places: what counts is that this ends well.
pub(super) fn look_into(disk: &mut dyn Source, places: &[u64]) {
    for at in places {
        let at = (*at).min(disk.size() - SECTOR);
        if disk.extent(at, disk.size() - at).is_ok() {
            let _ = disk.read(at, &mut [0; SECTOR as usize]);
        }
    }
}

/// Run a program; `false` if it is not installed.
fn run(program: &str, args: &[&str]) -> bool {
    match Command::new(program).args(args).output() {
        Err(_) => {
            eprintln!("skipped: there is no {program}");
            false
        }
        Ok(output) => {
            assert!(output.status.success(), "{program} {args:?}: {output:?}");
            true
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A raw disk with data, holes and written zeroes, also at its very end.
fn sample(dir: &Path) -> PathBuf {
    let path = dir.join("sample.raw");
    let file = File::create(&path).unwrap();
    file.set_len(SIZE).unwrap();
    let pattern = |seed: u8, len: usize| -> Vec<u8> {
        (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed) | 1).collect()
    };
    file.write_all_at(&pattern(1, 700_000), 0).unwrap();
    file.write_all_at(&pattern(2, 5), (33 << 20) - 2).unwrap();
    file.write_all_at(&vec![0; 1 << 20], 40 << 20).unwrap();
    file.write_all_at(&pattern(3, 1000), SIZE - 1000).unwrap();
    let mut noise = vec![0_u8; 300_000];
    let mut state = 7_u32;
    for byte in &mut noise {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    }
    file.write_all_at(&noise, 50 << 20).unwrap();
    path
}

fn digest(path: &Path) -> Digest {
    Digest::of_reader(&mut File::open(path).unwrap(), |_| ()).unwrap().0
}

/// What skiff reads in a disk, as a raw file, and how much room that takes.
fn read_back(path: &Path, dir: &Path) -> Result<(Digest, Format, u64), DiskError> {
    let work = tempfile::tempdir_in(dir).unwrap();
    let (mut source, format) = open(path, work.path(), &mut ())?;
    let out = work.path().join("out");
    let written = raw::write(&mut *source, &out, &mut |_, _| ());
    let file = written.map_err(copy_failed(path, &out))?;
    Ok((digest(&out), format, file.metadata().unwrap().blocks() * 512))
}

#[test]
fn every_format_that_qemu_img_writes_is_read_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let raw = sample(dir.path());
    let wanted = digest(&raw);
    let kinds: [(&str, Format, &[&str]); 14] = [
        ("qcow2", Format::Qcow2, &[]),
        ("qcow2", Format::Qcow2, &["-o", "compat=0.10"]),
        ("qcow2", Format::Qcow2, &["-c"]),
        ("qcow2", Format::Qcow2, &["-c", "-o", "compression_type=zstd"]),
        ("qcow2", Format::Qcow2, &["-o", "cluster_size=2M,preallocation=metadata"]),
        ("qcow2", Format::Qcow2, &["-o", "cluster_size=512"]),
        ("vmdk", Format::Vmdk, &[]),
        ("vmdk", Format::Vmdk, &["-o", "zeroed_grain=on"]),
        ("vmdk", Format::Vmdk, &["-o", "subformat=streamOptimized"]),
        ("vmdk", Format::Vmdk, &["-o", "subformat=monolithicFlat"]),
        ("vhdx", Format::Vhdx, &[]),
        ("vhdx", Format::Vhdx, &["-o", "block_size=1M"]),
        ("vhdx", Format::Vhdx, &["-o", "subformat=fixed"]),
        ("raw", Format::Raw, &[]),
    ];
    for (number, (kind, format, options)) in kinds.into_iter().enumerate() {
        let path = dir.path().join(format!("{number}.{kind}"));
        let mut args = vec!["convert", "-f", "raw", "-O", kind];
        args.extend(options);
        args.extend([text(&raw), text(&path)]);
        if !run("qemu-img", &args) {
            return;
        }
        if format == Format::Raw {
            // Without a mark, nothing says that it is a disk.
            assert!(recognise(&path).unwrap().is_none());
            continue;
        }
        assert_eq!(recognise(&path).unwrap(), Some(format), "{kind} {options:?}");
        let (found, found_format, allocated) = read_back(&path, dir.path()).unwrap();
        assert_eq!((found, found_format), (wanted, format), "{kind} {options:?}");
        assert!(allocated < 4 << 20, "{kind} {options:?}: holes stay holes, {allocated}");
        if number == 3 || number == 6 {
            let packed = dir.path().join(format!("{number}.gz"));
            let mut encoder =
                flate2::write::GzEncoder::new(File::create(&packed).unwrap(), flate2::Compression::fast());
            io::copy(&mut File::open(&path).unwrap(), &mut encoder).unwrap();
            encoder.finish().unwrap();
            assert_eq!(recognise(&packed).unwrap(), Some(format));
            assert_eq!(read_back(&packed, dir.path()).unwrap().0, wanted);
        }
    }
}

#[test]
fn a_disk_is_exported_to_each_format_and_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let raw = sample(dir.path());
    let mut source = Raw::new(File::open(&raw).unwrap()).unwrap();
    let (base, top) = (dir.path().join("base"), dir.path().join("top"));
    layer::pack(&HostStorage, &mut source, &base, &mut |_, _| Ok(())).unwrap();
    let below = layer::Base { name: "base".into(), format: layer::Format::Qcow2 };
    layer::create(&HostStorage, &top, Some(&below), SIZE).unwrap();
    for format in Format::ALL {
        let out = dir.path().join(format!("out.{}", format.name()));
        fs::write(&out, "what was there before").unwrap();
        export(&top, &out, format, &mut ()).unwrap();
        if !run("qemu-img", &["compare", "-f", "raw", "-F", format.name(), text(&raw), text(&out)]) {
            return;
        }
        if format != Format::Raw {
            assert_eq!(read_back(&out, dir.path()).unwrap().0, digest(&raw), "{format:?}");
            run("qemu-img", &["check", "-f", format.name(), text(&out)]);
        }
        assert!(out.metadata().unwrap().blocks() * 512 < 20 << 20, "{format:?} stays sparse");
    }
    let info = layer::inspect(&HostStorage, &dir.path().join("out.qcow2")).unwrap();
    assert_eq!(info.backing, None);
    let left = fs::read_dir(dir.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with('.'));
    assert_eq!(left.count(), 0, "nothing stays aside");
}

/// Why a file is refused.
fn refused(path: &Path, dir: &Path) -> String {
    let error = read_back(path, dir).expect_err(&format!("{} is refused", path.display()));
    let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{source}")
}

/// It is refused with these words.
fn says(path: &Path, words: &str) {
    let said = refused(path, path.parent().unwrap());
    assert!(said.contains(words), "{}: {said}", path.display());
}

#[test]
fn no_descriptor_leads_to_another_file() {
    let dir = tempfile::tempdir().unwrap();
    let raw = sample(dir.path());
    let path = |name: &str| dir.path().join(name);
    let says = |path: PathBuf, words: &str| says(&path, words);
    let descriptor = |name: &str, extent: &str| {
        let text = format!("# Disk DescriptorFile\nversion=1\nCID=0\nparentCID=ffffffff\n{extent}\n");
        fs::write(path(name), text).unwrap();
        path(name)
    };
    fs::write(path("secret"), vec![b's'; 1 << 20]).unwrap();
    std::os::unix::fs::symlink("secret", path("link-flat.vmdk")).unwrap();
    for (number, name) in
        ["/etc/passwd.vmdk", "../x.vmdk", "sub/x.vmdk", "secret", ".vmdk", "own7.vmdk"].iter().enumerate()
    {
        let own = format!("own{}.vmdk", if *name == "own7.vmdk" { 7 } else { number });
        says(descriptor(&own, &format!("RW 2048 FLAT \"{name}\" 0")), "needs another file");
    }
    says(descriptor("l.vmdk", "RW 2048 FLAT \"link-flat.vmdk\" 0"), "cannot be opened");
    fs::copy(&raw, path("short-flat.vmdk")).unwrap();
    says(descriptor("s.vmdk", "RW 999999 FLAT \"short-flat.vmdk\" 0"), "cut off");
    says(descriptor("two.vmdk", "RW 1 FLAT \"a.vmdk\" 0\nRW 1 FLAT \"b.vmdk\" 0"), "needs another file");
    says(descriptor("sp.vmdk", "RW 2048 SPARSE \"a.vmdk\""), "needs another file");
    says(descriptor("dev.vmdk", "RW 2048 FLAT \"/dev/sda\" 0"), "needs another file");
    says(descriptor("none.vmdk", ""), "extent");
    says(
        descriptor("p.vmdk", "parentFileNameHint=\"base.vmdk\"\nRW 1 FLAT \"a.vmdk\" 0"),
        "needs another file",
    );
    says(descriptor("e.vmdk", "encryption.keySafe = \"x\"\nRW 1 FLAT \"a.vmdk\" 0"), "encrypted");
}

#[test]
fn no_disk_leads_to_another_file() {
    let dir = tempfile::tempdir().unwrap();
    let raw = sample(dir.path());
    let path = |name: &str| dir.path().join(name);
    let make = |args: &[&str]| run("qemu-img", args);
    let (on, data, secret) = (path("on.qcow2"), path("data.qcow2"), path("secret.qcow2"));
    if !make(&["create", "-f", "qcow2", "-F", "raw", "-b", text(&raw), text(&on)]) {
        return;
    }
    says(&on, "backing file");
    let options = format!("data_file={},data_file_raw=on", text(&path("data.raw")));
    make(&["create", "-f", "qcow2", "-o", &options, text(&data), "1M"]);
    says(&data, "external data file");
    let key = ["--object", "secret,id=s,data=pw", "-o", "encrypt.format=aes,encrypt.key-secret=s"];
    make(&[&["create"], &key[..], &["-f", "qcow2", text(&secret), "1M"]].concat());
    says(&secret, "encryption");
    // LUKS, of which qemu-img makes no image where it cannot measure its own speed (crypt_method of the header).
    File::options().write(true).open(&secret).unwrap().write_all_at(&2_u32.to_be_bytes(), 32).unwrap();
    says(&secret, "encryption");
    let split = path("split.vmdk");
    make(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "vmdk",
        "-o",
        "subformat=twoGbMaxExtentSparse",
        text(&raw),
        text(&split),
    ]);
    says(&split, "needs another file");
    let giant = path("giant.qcow2");
    make(&["create", "-f", "qcow2", text(&giant), "9T"]);
    says(&giant, "no such disk is imported");
    let vdi = path("x.vdi");
    make(&["convert", "-f", "raw", "-O", "vdi", text(&raw), text(&vdi)]);
    says(&vdi, "VirtualBox disk (VDI), which skiff does not read: convert it");
}

#[test]
fn a_bomb_does_not_fill_the_disk() {
    // A gigabyte of zeroes that takes a megabyte, and a disk of which 8 TiB would come: both take no room.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bomb.zst");
    let mut encoder = zstd::Encoder::new(File::create(&path).unwrap(), 1).unwrap();
    for _ in 0..256 {
        io::Write::write_all(&mut encoder, &vec![0; 1 << 20]).unwrap();
    }
    encoder.finish().unwrap();
    let out = dir.path().join("out");
    let file = unpack(File::open(&path).unwrap(), &path, &out, &mut ()).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 256 << 20);
    assert_eq!(file.metadata().unwrap().blocks(), 0);
}

/// Make a GPT disk with an ext4 of `tree` whose journal has a block to replay; returns what is in that block, and where it is. `None` without the
/// programs.
fn unclean_disk(path: &Path, tree: &Path, dir: &Path) -> (Vec<u8>, u64) {
    let (start, block) = (1_u64 << 20, 5000_u64);
    File::create(path).unwrap().set_len(30 << 20).unwrap();
    let sbin = |program: &str| format!("/usr/sbin/{program}");
    let offset = format!("offset={start}");
    assert!(run(
        &sbin("mkfs.ext4"),
        &["-q", "-F", "-b", "1024", "-E", &offset, "-d", text(tree), text(path), "20M"]
    ));
    let content: Vec<u8> = (0..1024_u32).map(|at| (at % 251) as u8 + 1).collect();
    fs::write(dir.join("block"), &content).unwrap();
    fs::write(dir.join("requests"), format!("jo\njw -b {block} {}\njc\n", text(&dir.join("block")))).unwrap();
    let image = format!("{}?{offset}", text(path));
    assert!(run(&sbin("debugfs"), &["-w", "-f", text(&dir.join("requests")), &image]));
    // An MBR with the one partition.
    let file = File::options().write(true).open(path).unwrap();
    let mut entry = [0_u8; 16];
    entry[4] = 0x83;
    entry[8..12].copy_from_slice(&2048_u32.to_le_bytes());
    entry[12..16].copy_from_slice(&(20_u32 << 11).to_le_bytes());
    file.write_all_at(&entry, 446).unwrap();
    file.write_all_at(&0xc0ff_ee01_u32.to_le_bytes(), 440).unwrap();
    file.write_all_at(&[0x55, 0xaa], 510).unwrap();
    (content, start + block * 1024)
}

#[test]
fn a_system_is_found_its_journal_replayed_and_the_agent_put_in() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    for path in ["boot", "etc", "usr/lib/systemd"] {
        fs::create_dir_all(tree.join(path)).unwrap();
    }
    std::os::unix::fs::symlink("usr/lib", tree.join("lib")).unwrap();
    fs::write(tree.join("usr/lib/systemd/systemd"), "").unwrap();
    fs::write(tree.join("usr/lib/os-release"), "PRETTY_NAME=\"Test 1\"\n").unwrap();
    std::os::unix::fs::symlink("../usr/lib/os-release", tree.join("etc/os-release")).unwrap();
    fs::write(tree.join("etc/fstab"), "/dev/vda1 / ext4 defaults 0 1\n").unwrap();
    let mut kernel = vec![0; 4096];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    fs::write(tree.join("boot/vmlinuz-6.1-x"), &kernel).unwrap();
    fs::write(tree.join("boot/initrd.img-6.1-x"), "initrd").unwrap();
    let path = dir.path().join("disk.img");
    let (content, place) = unclean_disk(&path, &tree, dir.path());
    assert_eq!(recognise(&path).unwrap(), Some(Format::Raw));
    let store = Store::open(dir.path().join("images"));
    let options = Options { agent: Some(b"the agent"), kernel_from: None };
    let (manifest, notes) = import(&store, &path, &options, &mut ()).unwrap();
    assert_eq!((manifest.os.as_str(), manifest.agent), ("Test 1", Agent::Service));
    assert_eq!(manifest.cmdline, "root=PARTUUID=c0ffee01-01 ro");
    assert_eq!(notes, Vec::<String>::new());
    assert_eq!(fs::read(store.blob_path(&manifest.kernel.digest)).unwrap(), kernel);
    assert_eq!(fs::read(store.blob_path(&manifest.initrd.unwrap().digest)).unwrap(), b"initrd");
    let out = dir.path().join("out.raw");
    export(&store.blob_path(&manifest.disk.layers[0].digest), &out, Format::Raw, &mut ()).unwrap();
    let mut found = vec![0; content.len()];
    File::open(&out).unwrap().read_exact_at(&mut found, place).unwrap();
    assert_eq!(found, content, "what was in the journal alone");
    let files = Debugfs::open(&out, 1 << 20, false).unwrap();
    assert_eq!(files.read(install::PROGRAM_PATH, 100).unwrap(), b"the agent");
    assert_eq!(files.stat(install::PROGRAM_PATH).unwrap().unwrap().mode & 0o7777, 0o755);
    ext4::check(&out, 1 << 20).unwrap();
    // As it is, and with the kernel of the first.
    let options = Options { agent: None, kernel_from: Some(&manifest) };
    let (other, _) = import(&store, &path, &options, &mut ()).unwrap();
    assert_eq!((other.agent, other.kernel), (Agent::None, manifest.kernel));
    // What the guest would see: the journal is replayed in a copy.
    let packed = |top: &Path, cmdline: &str| {
        let (work, mut tar) = (tempfile::tempdir().unwrap(), Vec::new());
        archive(top, cmdline, work.path(), &mut tar, &mut ()).map(|_| tar)
    };
    let (imported, own) =
        (store.blob_path(&other.disk.layers[0].digest), packed(&path, "quiet root=PARTUUID=C0FFEE01-01"));
    assert!(own.unwrap() == packed(&imported, &other.cmdline).unwrap());
    for cmdline in ["quiet", "root=/dev/vda", "root=PARTUUID=c0ffee01-02"] {
        assert!(matches!(packed(&path, cmdline), Err(DiskError::System { .. })), "{cmdline}");
    }
    let tar = dir.path().join("files.tar");
    export_files(&imported, &other.cmdline, &tar, &mut ()).unwrap();
    assert!(crate::rootfs::recognise(&tar).unwrap());
}
