//! Images of VMs in registries: an OCI artifact (image-spec, manifest.md, "Guidelines for Artifact Usage").
//!
//! ```text
//! config  application/vnd.skiff.image.config.v1+json     the image's manifest, to the byte: its digest is the image's ID
//! layers  application/vnd.skiff.image.disk.v1.qcow2+zstd the root disk's qcow2 files, compressed; annotation vnd.skiff.digest: what is in it
//!         application/vnd.skiff.image.file.v1            the kernel, the initial RAM disk and the rest, as they are
//! ```

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::client::Client;
use super::download::{fetch, fetch_aside};
use super::error::Error;
use super::pull::document;
use super::transfer::Transfer;
use crate::digest::Digest;
use crate::manifest::{Blob, Manifest, Source};
use crate::oci::spec::{self, Descriptor, MAX_MANIFEST};
use crate::oci::{self};
use crate::progress::Progress;
use crate::store::{Scratch, Store, file_name};

/// The type of an image's manifest, as the configuration of the artifact.
pub const CONFIG: &str = "application/vnd.skiff.image.config.v1+json";
/// The type of a file that is as it is in the store.
const FILE: &str = "application/vnd.skiff.image.file.v1";
/// The type of a compressed disk.
const DISK: &str = "application/vnd.skiff.image.disk.v1.qcow2+zstd";
/// What a compressed disk is when it is not.
const DIGEST: &str = "vnd.skiff.digest";
/// How well disks are compressed.
const LEVEL: i32 = 3;
/// How much is copied at once, in bytes.
const CHUNK: usize = 1 << 20;

/// A file of an image, and what of the artifact holds it.
struct Wanted {
    blob: Blob,
    layer: Descriptor,
}

/// Make the artifact's image one of the store's.
pub(super) fn pull(
    client: &Client,
    store: &Store,
    artifact: &spec::Manifest,
    progress: &mut dyn Progress,
) -> Result<Digest, Error> {
    let text = document(client, &artifact.config, "configuration", MAX_MANIFEST)?;
    let image: Manifest = serde_json::from_slice(&text)
        .map_err(|source| spec::Error::Json { what: "configuration", source })?;
    check_words(&image)?;
    if matches!(&image.source, Source::Oci { content, .. } if !content.is_empty()) {
        // That would have been pushed as it came. A pull of that container would find this in its place.
        let why = "it says that it is a container's image, but it is none".to_owned();
        return Err(spec::Error::Wrong { what: "configuration", why }.into());
    }
    let mut wanted: Vec<Wanted> = Vec::new();
    for blob in image.blobs() {
        if wanted.iter().any(|known| known.blob.digest == blob.digest) {
            continue;
        }
        let name = blob.digest.to_string();
        let holds =
            |layer: &&Descriptor| layer.digest == blob.digest || layer.annotations.get(DIGEST) == Some(&name);
        let layer = artifact.layers.iter().find(holds).cloned();
        let layer = layer.ok_or_else(|| spec::Error::Wrong {
            what: "manifest",
            why: format!("it has no layer with {name}"),
        })?;
        wanted.push(Wanted { blob, layer });
    }
    let total = wanted.iter().fold(0_u64, |sum, wanted| sum.saturating_add(wanted.layer.size));
    progress.step("pulling the image's files");
    let transfer = Transfer::default();
    transfer.run(&wanted, total, progress, |wanted| get(client, store, wanted, &transfer))?;
    check_disks(store, &image)?;
    Ok(store.put_text(&text)?)
}

fn get(client: &Client, store: &Store, wanted: &Wanted, transfer: &Transfer) -> Result<(), Error> {
    let Wanted { blob, layer } = wanted;
    if layer.digest == blob.digest {
        return fetch(client, store, blob, transfer);
    }
    if store.keep(blob)? {
        transfer.add(layer.size);
        return Ok(());
    }
    let packed = Blob { digest: layer.digest, size: layer.size };
    let aside = fetch_aside(client, store, &packed, transfer)?;
    let path =
        aside.as_ref().map_or_else(|| store.blob_path(&packed.digest), |partial| partial.path().to_owned());
    unpack(store, &path, blob)?;
    aside.map_or(Ok(()), |aside| aside.remove().map_err(Error::io(format!("delete {}", path.display()))))
}

/// Unpack a compressed disk into the store: exactly `blob`, and not a byte more.
fn unpack(store: &Store, path: &Path, blob: &Blob) -> Result<(), Error> {
    let failed = || Error::io(format!("unpack {}", path.display()));
    store.room(blob.size)?;
    let decoder = File::open(path).and_then(zstd::Decoder::new).map_err(failed())?;
    let mut decoder = decoder.take(blob.size.saturating_add(1));
    let mut draft = store.draft()?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let got = decoder.read(&mut buffer).map_err(failed())?;
        if got == 0 {
            break;
        }
        draft.write_all(buffer.get(..got).unwrap_or_default()).map_err(failed())?;
    }
    if draft.len() != blob.size {
        return Err(
            oci::Error::Length { what: format!("the disk {}", blob.digest), wanted: blob.size }.into()
        );
    }
    draft.commit_as(&blob.digest)?;
    Ok(())
}

/// Refuse texts that would play with the terminals that they are shown on, or that no program could be started with.
fn check_words(image: &Manifest) -> Result<(), Error> {
    let wrong = |why: &str| spec::Error::Wrong { what: "configuration", why: why.to_owned() };
    oci::defaults(&oci::execution(&image.defaults))?;
    let source = serde_json::to_value(&image.source)
        .map_err(|source| spec::Error::Json { what: "configuration", source })?;
    let texts =
        source.as_object().into_iter().flat_map(|fields| fields.values()).filter_map(|value| value.as_str());
    let defaults = &image.defaults;
    let more = defaults.ports.iter().chain(&defaults.publish).chain(&defaults.memory).chain([
        &defaults.cwd,
        &image.os,
        &image.cmdline,
    ]);
    if texts.chain(more.map(String::as_str)).any(|text| text.chars().any(char::is_control)) {
        return Err(wrong("it has control characters where a name stands").into());
    }
    Ok(())
}

/// Refuse disks that stand on another file than the one below them in the image, such as one of the host's.
fn check_disks(store: &Store, image: &Manifest) -> Result<(), Error> {
    let layers = &image.disk.layers;
    let below = layers.iter().skip(1).map(|blob| Some(file_name(&blob.digest))).chain([None]);
    for (blob, below) in layers.iter().zip(below) {
        let path = store.blob_path(&blob.digest);
        let file = File::open(&path).map_err(Error::io(format!("read {}", path.display())))?;
        let said = Backing::read(&file).map_err(Error::io(format!("read {}", path.display())))?;
        match said {
            Some(said) if said.name == below && said.size <= image.disk.size => {}
            Some(said) => {
                let on = said.name.unwrap_or_else(|| "nothing".to_owned());
                return Err(oci::Error::Disks(format!("{} stands on {on:.100?}", blob.digest)).into());
            }
            None => {
                return Err(oci::Error::Disks(format!("{} is no qcow2 file of its own", blob.digest)).into());
            }
        }
    }
    if layers.is_empty() { Err(oci::Error::Disks("there is none".to_owned()).into()) } else { Ok(()) }
}

/// What a qcow2 file stands on.
#[derive(Debug, PartialEq, Eq)]
struct Backing {
    name: Option<String>,
    size: u64,
}

impl Backing {
    /// By the header (QEMU, docs/interop/qcow2.txt); none if it is no qcow2 file, or has its data elsewhere.
    fn read(file: &File) -> io::Result<Option<Self>> {
        let mut header = [0_u8; 80];
        if let Err(error) = file.read_exact_at(&mut header, 0) {
            return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error) };
        }
        let word = |at: usize| {
            header
                .get(at..)
                .and_then(|bytes| bytes.first_chunk())
                .map_or(0, |bytes| u32::from_be_bytes(*bytes))
        };
        let long = |at: usize| {
            header
                .get(at..)
                .and_then(|bytes| bytes.first_chunk())
                .map_or(0, |bytes| u64::from_be_bytes(*bytes))
        };
        // Bit 2 of the features that one must know: the data are in another file.
        if word(0) != 0x5146_49fb || !matches!(word(4), 2 | 3) || word(4) == 3 && long(72) & 4 != 0 {
            return Ok(None);
        }
        let (offset, len) = (long(8), word(16));
        if offset == 0 {
            return Ok(Some(Self { name: None, size: long(24) }));
        }
        if len > 1023 {
            return Ok(None);
        }
        let mut name = vec![0; len as usize];
        file.read_exact_at(&mut name, offset)?;
        Ok(Some(Self { name: Some(String::from_utf8_lossy(&name).into_owned()), size: long(24) }))
    }
}

/// What is sent for an image.
pub(super) struct Artifact {
    /// The artifact's manifest.
    pub manifest: Vec<u8>,
    /// The image's, which is the artifact's configuration.
    pub config: Vec<u8>,
    /// Its layers, and where they are.
    pub layers: Vec<(Blob, PathBuf)>,
    /// What the compressed disks are in.
    _scratch: Scratch,
}

impl Artifact {
    /// Of the image `id`. Its disks are compressed aside.
    pub(super) fn of(store: &Store, id: &Digest, progress: &mut dyn Progress) -> Result<Self, Error> {
        let path = store.manifest_path(id);
        let config = std::fs::read(&path).map_err(Error::io(format!("read {}", path.display())))?;
        let image = store.get(id)?;
        let scratch = store.scratch()?;
        let (mut layers, mut descriptors) = (Vec::new(), Vec::new());
        let disks = &image.disk.layers;
        for blob in disks {
            progress.step(&format!("compressing disk {}", blob.digest.short()));
            let to = scratch.path().join(file_name(&blob.digest));
            let packed =
                pack(store, blob, &to, progress).map_err(Error::io(format!("compress {}", blob.digest)))?;
            descriptors.push(
                Descriptor::new(DISK, packed.digest, packed.size).annotated(DIGEST, blob.digest.to_string()),
            );
            layers.push((packed, to));
        }
        for blob in image.blobs().into_iter().filter(|blob| !disks.contains(blob)) {
            descriptors.push(Descriptor::new(FILE, blob.digest, blob.size));
            layers.push((blob, store.blob_path(&blob.digest)));
        }
        let manifest = spec::Manifest {
            schema_version: 2,
            media_type: Some(spec::OCI_MANIFEST.to_owned()),
            artifact_type: Some(CONFIG.to_owned()),
            config: Descriptor::new(CONFIG, *id, config.len() as u64),
            layers: descriptors,
            annotations: [("org.opencontainers.image.title".to_owned(), image.os.clone())].into(),
        };
        let manifest =
            serde_json::to_vec(&manifest).map_err(|source| spec::Error::Json { what: "manifest", source })?;
        Ok(Self { manifest, config, layers, _scratch: scratch })
    }
}

/// Compress a file of the store to `to`, and say what that is.
fn pack(store: &Store, blob: &Blob, to: &Path, progress: &mut dyn Progress) -> io::Result<Blob> {
    store.room(blob.size / 2).map_err(io::Error::other)?;
    let mut from = File::open(store.blob_path(&blob.digest))?;
    let mut encoder = zstd::Encoder::new(File::create_new(to)?, LEVEL)?;
    encoder.include_checksum(true)?;
    let (mut buffer, mut done) = (vec![0; CHUNK], 0_u64);
    loop {
        let got = from.read(&mut buffer)?;
        if got == 0 {
            break;
        }
        encoder.write_all(buffer.get(..got).unwrap_or_default())?;
        done = done.saturating_add(got as u64);
        progress.advance(done, Some(blob.size));
    }
    encoder.finish()?;
    let (digest, size) = Digest::of_reader(&mut File::open(to)?, |_| {})?;
    Ok(Blob { digest, size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn backing(bytes: &[u8]) -> Option<Backing> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Backing::read(&file).ok().flatten()
    }

    fn header(name: &[u8], features: u64) -> Vec<u8> {
        let mut bytes = vec![0; 80];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        bytes[7] = 3;
        bytes[24..32].copy_from_slice(&4096_u64.to_be_bytes());
        bytes[72..80].copy_from_slice(&features.to_be_bytes());
        if !name.is_empty() {
            bytes[15] = 80;
            bytes[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
            bytes.extend(name);
        }
        bytes
    }

    #[test]
    fn a_disk_says_what_it_stands_on() {
        assert_eq!(backing(&header(b"", 0)), Some(Backing { name: None, size: 4096 }));
        assert_eq!(
            backing(&header(b"/etc/shadow", 0)),
            Some(Backing { name: Some("/etc/shadow".to_owned()), size: 4096 })
        );
        assert_eq!(backing(&header(b"", 4)), None);
        assert_eq!(backing(b"raw"), None);
        assert_eq!(backing(&[0; 4096]), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn no_header_makes_it_fall_over(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), qcow: bool) {
            if qcow && bytes.len() > 8 {
                bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
            }
            let _ = backing(&bytes);
        }
    }
}
