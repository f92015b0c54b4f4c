use super::*;

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tempfile::{NamedTempFile, TempDir};

/// Where test programs are built: on a real file system, and ignored by git.
fn target_dir() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().to_owned()
}

/// A disk file of `len` bytes with content. In the target directory: `/tmp` may have no direct I/O.
pub(crate) fn file(len: usize) -> NamedTempFile {
    let file = tempfile::Builder::new().prefix("disk").tempfile_in(target_dir()).unwrap();
    file.as_file().write_all_at(&pattern(0, len), 0).unwrap();
    file
}

/// Bytes that differ from sector to sector.
pub(crate) fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i / 512 * 31 + i + seed * 7) % 251) as u8 + 1).collect()
}

pub(crate) fn options(file: &NamedTempFile) -> DiskOptions {
    DiskOptions { path: file.path().to_owned(), readonly: false, direct: false }
}

/// An empty layer above `file`, in a directory of its own.
pub(crate) fn layered(file: &NamedTempFile) -> (TempDir, DiskOptions) {
    let dir = tempfile::Builder::new().prefix("layers").tempdir_in(target_dir()).unwrap();
    let path = dir.path().join("top");
    let size = file.as_file().metadata().unwrap().len();
    let base = layer::Base { name: file.path().to_owned(), format: Format::Raw };
    layer::create(&HostStorage, &path, Some(&base), size).unwrap();
    (dir, DiskOptions { path, readonly: false, direct: false })
}

impl Disk {
    /// All that is on it.
    pub(crate) fn content(&self) -> Vec<u8> {
        match self.stack() {
            None => std::fs::read(&self.path).unwrap(),
            Some(stack) => {
                let mut content = vec![0; stack.size() as usize];
                stack.read(0, &mut content).unwrap();
                content
            }
        }
    }
}

fn readonly(file: &NamedTempFile) -> DiskOptions {
    DiskOptions { readonly: true, ..options(file) }
}

fn fails(options: &DiskOptions) -> DiskError {
    let error = Disk::open(options).unwrap_err();
    assert!(error.to_string().contains(&*options.path.to_string_lossy()), "names the file: {error}");
    error
}

#[test]
fn a_raw_file_is_a_disk() {
    let file = file(64 * 1024);
    let disk = Disk::open(&options(&file)).unwrap();
    assert_eq!((disk.size(), disk.readonly(), disk.logical_block()), (64 * 1024, false, 512));
    assert!(disk.physical_block().is_power_of_two() && disk.physical_block() >= 512);
}

#[test]
fn two_writers_exclude_each_other_even_in_one_process() {
    let file = file(4096);
    let first = Disk::open(&options(&file)).unwrap();
    assert!(matches!(fails(&options(&file)), DiskError::InUse { .. }));
    assert!(matches!(fails(&readonly(&file)), DiskError::InUse { .. }));
    drop(first);
    Disk::open(&options(&file)).unwrap();
}

#[test]
fn readers_share_and_keep_a_writer_out() {
    let file = file(4096);
    let readers = [Disk::open(&readonly(&file)).unwrap(), Disk::open(&readonly(&file)).unwrap()];
    assert!(matches!(fails(&options(&file)), DiskError::InUse { .. }));
    drop(readers);
    Disk::open(&options(&file)).unwrap();
}

#[test]
fn what_is_no_disk_is_refused_with_the_fix() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let open = |path: PathBuf| fails(&DiskOptions { path, readonly: false, direct: false });
    assert!(matches!(open(path("none")), DiskError::Missing { .. }));
    assert!(matches!(open(dir.path().to_owned()), DiskError::Directory { .. }));
    std::fs::write(path("empty"), b"").unwrap();
    assert!(matches!(open(path("empty")), DiskError::Empty { .. }));
    std::fs::write(path("odd"), [1; 513]).unwrap();
    let odd = open(path("odd"));
    assert!(matches!(odd, DiskError::Size { size: 513, .. }) && odd.to_string().contains("truncate"));
    assert!(matches!(
        fails(&DiskOptions { path: "/dev/null".into(), readonly: true, direct: false }),
        DiskError::NotADisk { .. }
    ));
}

#[test]
fn images_of_other_formats_are_not_written_to() {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(b"KDMV").unwrap();
    file.as_file().set_len(64 * 1024).unwrap();
    let error = fails(&options(&file));
    assert!(matches!(error, DiskError::Format { format: "VMDK", .. }));
    assert!(error.to_string().contains("qemu-img convert"));
}

#[test]
fn erasing_reads_as_zeroes_and_keeps_the_rest() {
    for how in [Erase::Zero, Erase::Unmap, Erase::Discard] {
        let file = file(64 * 1024);
        let disk = Disk::open(&options(&file)).unwrap();
        let Content::Raw { file: raw, backing } = &disk.content else { panic!("it is raw") };
        let raw = erase::RawFile { file: raw, backing: *backing };
        raw.erase(Extent { offset: 8192, len: 12288, how }).unwrap();
        let mut expected = pattern(0, 64 * 1024);
        expected[8192..20480].fill(0);
        let mut content = std::fs::read(file.path()).unwrap();
        if how == Erase::Discard {
            // A host may keep what was discarded.
            content[8192..20480].fill(0);
        }
        assert!(content == expected, "{how:?}");
    }
}

#[test]
fn the_file_stays_open_and_locked_while_anyone_has_the_disk() {
    let file = file(4096);
    let disk = Arc::new(Disk::open(&options(&file)).unwrap());
    let other = Arc::clone(&disk);
    drop(disk);
    assert!(matches!(fails(&options(&file)), DiskError::InUse { .. }));
    drop(other);
    Disk::open(&options(&file)).unwrap();
}

#[test]
fn a_file_grows_by_a_hole() {
    let file = file(64 * 1024);
    let disk = Disk::open(&options(&file)).unwrap();
    disk.resize(1 << 40).unwrap();
    let metadata = file.as_file().metadata().unwrap();
    assert_eq!((disk.size(), metadata.len()), (1 << 40, 1 << 40));
    assert!(std::os::unix::fs::MetadataExt::blocks(&metadata) * 512 < 1 << 20, "it takes no place");
    disk.resize(1 << 40).unwrap();
}

#[test]
fn a_file_that_someone_else_made_longer_is_taken_as_it_is() {
    let file = file(64 * 1024);
    let disk = Disk::open(&DiskOptions { readonly: true, ..options(&file) }).unwrap();
    let error = disk.resize(128 * 1024).unwrap_err();
    assert!(matches!(error, DiskError::ReadOnly { .. }) && error.to_string().contains("truncate -s 131072"));
    file.as_file().set_len(256 * 1024).unwrap();
    assert_eq!(disk.size(), 64 * 1024, "not before it is asked to");
    disk.resize(128 * 1024).unwrap();
    assert_eq!((disk.size(), file.as_file().metadata().unwrap().len()), (128 * 1024, 256 * 1024));
    disk.resize(256 * 1024).unwrap();
}

#[test]
fn nothing_is_ever_cut_off() {
    let file = file(64 * 1024);
    let disk = Disk::open(&options(&file)).unwrap();
    for (size, text) in [
        (0, "multiple of 512"),
        (64 * 1024 + 1, "multiple of 512"),
        (512, "would be lost"),
        (1 << 63, "cannot make the disk"),
    ] {
        let error = disk.resize(size).unwrap_err().to_string();
        assert!(error.contains(text) && error.contains(&*file.path().to_string_lossy()), "{error}");
        assert_eq!((disk.size(), file.as_file().metadata().unwrap().len()), (64 * 1024, 64 * 1024));
    }
}
