//! OCI layouts (image-spec, image-layout.md) and what `docker save` writes, into the store.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::archive::Archive;
use super::spec::{self, Config, Descriptor, Document, MAX_CONFIG, MAX_LAYERS, MAX_MANIFEST};
use super::{Content, Error, Machine, assemble, is_layer};
use crate::compress::{self, Format};
use crate::digest::Digest;
use crate::manifest::{Blob, Manifest};
use crate::progress::Progress;
use crate::store::{Scratch, Store};

/// How many members of an archive are looked at to recognise it.
const FIRST: usize = 8;
/// How much of a compressed archive is unpacked to recognise it, in bytes.
const START: u64 = 1 << 20;
/// How many indexes may be within each other.
const MAX_DEPTH: u32 = 4;
/// How much is copied at once, in bytes.
const CHUNK: usize = 1 << 20;
/// How much may be written until it is asked again whether there is room, in bytes.
const STRIDE: u64 = 64 << 20;
/// What an entry of a layout's index is called by (image-spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// How containerd and docker call it whole.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// What skiff takes for a container's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory with an OCI layout.
    Directory,
    /// A tar of a layout, or what `docker save` writes; perhaps compressed.
    Archive,
}

/// Where an image's files are looked for.
enum Place {
    Directory(PathBuf),
    Archive { archive: Archive, path: PathBuf, _unpacked: Option<Scratch> },
}

/// An entry of `manifest.json` in a docker archive.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Whether a container's image is at `path`, by what is there.
///
/// # Errors
/// If it cannot be read.
pub fn recognise(path: &Path) -> Result<Option<Kind>, Error> {
    let failed = || Error::io("read", path);
    if fs::metadata(path).map_err(failed())?.is_dir() {
        let is_layout = path.join("oci-layout").is_file() && path.join("index.json").is_file();
        return Ok(is_layout.then_some(Kind::Directory));
    }
    let file = open_file(path).map_err(failed())?;
    let reader = compress::Reader::new(file).map_err(failed())?;
    let names = if reader.format() == Format::None {
        Archive::first_names(open_file(path).map_err(failed())?, FIRST)
    } else {
        unpacked_start(reader).and_then(|file| Archive::first_names(file, FIRST))
    };
    // What is no tar is no error: it is something else.
    let names = names.unwrap_or_default();
    Ok((!names.is_empty() && names.iter().all(|name| is_part(name))).then_some(Kind::Archive))
}

fn unpacked_start(from: impl Read) -> io::Result<File> {
    let mut start = Vec::new();
    // What is damaged later on is found when it is read for real.
    let _ = from.take(START).read_to_end(&mut start);
    let fd = rustix::fs::memfd_create("archive", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(&start)?;
    Ok(file)
}

/// Whether a layout or a docker archive has a member like this.
fn is_part(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or_default();
    let stem = first.strip_suffix(".json").or_else(|| first.strip_suffix(".tar")).unwrap_or(first);
    let is_hex = stem.len() == 64 && stem.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex || matches!(first, "" | "oci-layout" | "index.json" | "manifest.json" | "repositories" | "blobs")
}

/// The image at `path`, which [`recognise`] took; of several, the one that is called `name`. Its files are blobs of `store` then.
///
/// # Errors
/// If it is damaged, not for linux/amd64, one of several, or the store or host fails.
pub fn import(
    store: &Store,
    path: &Path,
    name: Option<&str>,
    machine: &mut dyn Machine,
    progress: &mut dyn Progress,
) -> Result<Manifest, Error> {
    progress.step(&format!("reading {}", path.display()));
    let place = Place::open(store, path, progress)?;
    let content = if place.has("index.json") {
        place.layout(store, name, progress)?
    } else if place.has("manifest.json") {
        place.docker(store, name, progress)?
    } else {
        return Err(place.unusable("it has neither an index.json nor a manifest.json"));
    };
    assemble(store, &content, machine, progress)
}

impl Place {
    fn open(store: &Store, path: &Path, progress: &mut dyn Progress) -> Result<Self, Error> {
        let failed = || Error::io("read", path);
        if fs::metadata(path).map_err(failed())?.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let mut file = open_file(path).map_err(failed())?;
        let mut reader = compress::Reader::new(file).map_err(failed())?;
        let mut unpacked = None;
        if reader.format() == Format::None {
            file = open_file(path).map_err(failed())?;
        } else {
            progress.step(&format!("unpacking {}", path.display()));
            let scratch = store.scratch()?;
            let to = scratch.path().join("archive");
            file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&to)
                .map_err(Error::io("write", &to))?;
            copy(store, path, &mut reader, &mut file, progress)?;
            unpacked = Some(scratch);
        }
        let archive = Archive::open(file).map_err(failed())?;
        Ok(Self::Archive { archive, path: path.to_owned(), _unpacked: unpacked })
    }

    fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Archive { path, .. } => path,
        }
    }

    fn unusable(&self, why: impl Into<String>) -> Error {
        Error::Unusable { path: self.path().to_owned(), why: why.into() }
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(path) => path.join(name).is_file(),
            Self::Archive { archive, .. } => archive.has(name),
        }
    }

    /// A file and its length.
    fn get(&self, name: &str) -> Result<(Box<dyn Read>, u64), Error> {
        match self {
            Self::Directory(dir) => {
                let path = dir.join(name);
                let file = open_file(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
                let (len, file) = file.map_err(Error::io("read", path))?;
                Ok((Box::new(file), len))
            }
            Self::Archive { archive, path, .. } => {
                let (content, len) = archive.get(name).map_err(Error::io("read", path))?;
                Ok((Box::new(content), len))
            }
        }
    }

    /// All of a document.
    fn read(&self, name: &str, what: &'static str, most: u64) -> Result<Vec<u8>, Error> {
        let (reader, len) = self.get(name)?;
        if len > most {
            return Err(spec::Error::Long { what, size: len, most }.into());
        }
        let mut bytes = Vec::new();
        reader.take(most).read_to_end(&mut bytes).map_err(Error::io("read", self.path()))?;
        Ok(bytes)
    }

    /// All of a document that a descriptor names.
    fn named(&self, of: &Descriptor, what: &'static str, most: u64) -> Result<Vec<u8>, Error> {
        let bytes = self.read(&blob_name(&of.digest), what, most)?;
        let got = Digest::of(&bytes);
        if got != of.digest {
            return Err(Error::Digest { what: format!("the {what}"), wanted: of.digest, got });
        }
        Ok(bytes)
    }

    /// The image of a layout.
    fn layout(
        &self,
        store: &Store,
        name: Option<&str>,
        progress: &mut dyn Progress,
    ) -> Result<Content, Error> {
        let bytes = self.read("index.json", "index", MAX_MANIFEST)?;
        let Document::Index(mut index) = Document::parse(&bytes, None)? else {
            return Err(self.unusable("its index.json is no index"));
        };
        let names: Vec<String> = index.manifests.iter().filter_map(called).collect();
        if let Some(name) = name {
            let is_it = |entry: &Descriptor| called(entry).is_some_and(|called| is_called(&called, name));
            if !index.manifests.iter().any(is_it) {
                return Err(Error::Unknown { path: self.path().to_owned(), name: name.to_owned(), names });
            }
            index.manifests.retain(is_it);
        }
        let mut different: Vec<_> = names.clone();
        different.sort();
        different.dedup();
        // One image may have several names.
        let mut seen = std::collections::BTreeSet::new();
        index.manifests.retain(|entry| seen.insert(entry.digest));
        if name.is_none() && different.len() > 1 && index.manifests.len() > 1 {
            return Err(Error::Several { path: self.path().to_owned(), names: different });
        }
        let reference = name.map(str::to_owned).or_else(|| different.pop());
        for _ in 0..MAX_DEPTH {
            let entry = index.choose()?.clone();
            let bytes = self.named(&entry, "manifest", MAX_MANIFEST)?;
            match Document::parse(&bytes, Some(&entry.media_type))? {
                Document::Index(inner) => index = inner,
                Document::Manifest(manifest) => {
                    return self.content(store, &bytes, &manifest, reference, progress);
                }
            }
        }
        Err(self.unusable(format!("more than {MAX_DEPTH} indexes are within each other")))
    }

    fn content(
        &self,
        store: &Store,
        bytes: &[u8],
        manifest: &spec::Manifest,
        reference: Option<String>,
        progress: &mut dyn Progress,
    ) -> Result<Content, Error> {
        if let Some(layer) = manifest.layers.iter().find(|layer| !is_layer(&layer.media_type)) {
            return Err(Error::Layer(layer.media_type.clone()));
        }
        let config_bytes = self.named(&manifest.config, "configuration", MAX_CONFIG)?;
        let config = Config::parse(&config_bytes, manifest.layers.len())?;
        progress.step("copying layers");
        let total = manifest.layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.size));
        let mut layers = Vec::with_capacity(manifest.layers.len());
        let mut done = 0_u64;
        for layer in &manifest.layers {
            let blob = Blob { digest: layer.digest, size: layer.size };
            if !store.keep(&blob)? {
                self.add(store, &blob_name(&layer.digest), Some(&blob), &mut |part| {
                    progress.advance(done.saturating_add(part), Some(total));
                })?;
            }
            done = done.saturating_add(layer.size);
            layers.push(blob);
        }
        let (manifest, config_blob) = (store.add_bytes(bytes)?, store.add_bytes(&config_bytes)?);
        Ok(Content { manifest, config_blob, config, layers, reference })
    }

    /// Copy a file into the store, which is to be `wanted`.
    fn add(
        &self,
        store: &Store,
        name: &str,
        wanted: Option<&Blob>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Blob, Error> {
        let (mut reader, len) = self.get(name)?;
        let wrong = |wanted| Error::Length { what: format!("{name} in {}", self.path().display()), wanted };
        if let Some(wanted) = wanted.filter(|wanted| wanted.size != len) {
            return Err(wrong(wanted.size));
        }
        store.room(len)?;
        let mut draft = store.draft()?;
        let mut buffer = vec![0; CHUNK];
        loop {
            let got = reader.read(&mut buffer).map_err(Error::io("read", self.path()))?;
            if got == 0 {
                break;
            }
            let part = buffer.get(..got).unwrap_or_default();
            draft.write_all(part).map_err(Error::io("write in", store.root()))?;
            if draft.len() > len {
                return Err(wrong(len));
            }
            progress(draft.len());
        }
        match wanted {
            Some(wanted) => Ok(draft.commit_as(&wanted.digest)?),
            None => Ok(draft.commit()?),
        }
    }

    /// The image of a docker archive. It has no manifest of its own; the one that is made of it is always the same.
    fn docker(
        &self,
        store: &Store,
        name: Option<&str>,
        progress: &mut dyn Progress,
    ) -> Result<Content, Error> {
        let bytes = self.read("manifest.json", "manifest", MAX_MANIFEST)?;
        let saved: Vec<Saved> = spec::json(&bytes, "manifest")?;
        let saved = self.choose(&saved, name)?;
        if saved.layers.len() > MAX_LAYERS {
            return Err(self.unusable(format!("it has more than {MAX_LAYERS} layers")));
        }
        let config_bytes = self.read(&saved.config, "configuration", MAX_CONFIG)?;
        let got = Digest::of(&config_bytes);
        let stem = saved.config.rsplit('/').next().unwrap_or_default();
        let stem = stem.strip_suffix(".json").unwrap_or(stem);
        if let Ok(wanted) = format!("sha256:{stem}").parse::<Digest>()
            && wanted != got
        {
            return Err(Error::Digest { what: "the configuration".to_owned(), wanted, got });
        }
        let config = Config::parse(&config_bytes, saved.layers.len())?;
        progress.step("copying layers");
        let (mut layers, mut descriptors, mut done) = (Vec::new(), Vec::new(), 0_u64);
        for (layer, diff_id) in saved.layers.iter().zip(&config.rootfs.diff_ids) {
            let format =
                compress::Reader::new(self.get(layer)?.0).map_err(Error::io("read", self.path()))?.format();
            let len = self.get(layer)?.1;
            let known = (format == Format::None).then_some(Blob { digest: *diff_id, size: len });
            let blob = match known {
                Some(blob) if store.keep(&blob)? => blob,
                _ => self.add(store, layer, known.as_ref(), &mut |part| {
                    progress.advance(done.saturating_add(part), None)
                })?,
            };
            done = done.saturating_add(len);
            descriptors.push(Descriptor::new(self.layer_type(format)?, blob.digest, blob.size));
            layers.push(blob);
        }
        let manifest = spec::Manifest {
            schema_version: 2,
            media_type: Some(spec::OCI_MANIFEST.to_owned()),
            artifact_type: None,
            config: Descriptor::new(spec::OCI_CONFIG, got, config_bytes.len() as u64),
            layers: descriptors,
            annotations: std::collections::BTreeMap::new(),
        };
        let bytes =
            serde_json::to_vec(&manifest).map_err(|source| spec::Error::Json { what: "manifest", source })?;
        let reference = name.map(str::to_owned).or_else(|| saved.repo_tags.as_ref()?.first().cloned());
        let (manifest, config_blob) = (store.add_bytes(&bytes)?, store.add_bytes(&config_bytes)?);
        Ok(Content { manifest, config_blob, config, layers, reference })
    }

    fn layer_type(&self, format: Format) -> Result<&'static str, Error> {
        match format {
            Format::None => Ok(spec::OCI_LAYER),
            Format::Gzip => Ok("application/vnd.oci.image.layer.v1.tar+gzip"),
            Format::Zstd => Ok("application/vnd.oci.image.layer.v1.tar+zstd"),
            other => {
                Err(self.unusable(format!("a layer is compressed by {other}, which images must not be")))
            }
        }
    }

    fn choose<'a>(&self, saved: &'a [Saved], name: Option<&str>) -> Result<&'a Saved, Error> {
        let tags = |saved: &Saved| saved.repo_tags.clone().unwrap_or_default();
        let names = || saved.iter().flat_map(tags).take(50).collect();
        match (name, saved) {
            (_, []) => Err(self.unusable("it has no images")),
            (None, [only]) => Ok(only),
            (None, _) => Err(Error::Several { path: self.path().to_owned(), names: names() }),
            (Some(name), _) => {
                let found = saved.iter().find(|saved| tags(saved).iter().any(|tag| is_called(tag, name)));
                found.ok_or_else(|| Error::Unknown {
                    path: self.path().to_owned(),
                    name: name.to_owned(),
                    names: names(),
                })
            }
        }
    }
}

/// What an entry of a layout's index is called.
fn called(entry: &Descriptor) -> Option<String> {
    let names = [IMAGE_NAME, REF_NAME].iter();
    names.filter_map(|key| entry.annotations.get(*key)).find(|name| !name.is_empty()).cloned()
}

/// Whether `name` means what is called `called`: the whole name, or its tag.
fn is_called(called: &str, name: &str) -> bool {
    called == name || called.rsplit_once(':').is_some_and(|(_, tag)| tag == name)
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A regular file, without waiting for somebody to write to a pipe.
fn open_file(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits();
    let file = OpenOptions::new().read(true).custom_flags(i32::try_from(flags).unwrap_or(0)).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"))
    }
}

/// All of `from` to `to`, as long as there is room.
fn copy(
    store: &Store,
    path: &Path,
    from: &mut impl Read,
    to: &mut File,
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    let (mut buffer, mut done, mut room) = (vec![0; CHUNK], 0_u64, 0_u64);
    loop {
        let got = from.read(&mut buffer).map_err(Error::io("read", path))?;
        if got == 0 {
            return Ok(());
        }
        // A bomb is stopped before the disk is full.
        if done.saturating_add(got as u64) > room {
            store.room(STRIDE)?;
            room = done.saturating_add(STRIDE);
        }
        to.write_all(buffer.get(..got).unwrap_or_default()).map_err(Error::io("write in", store.root()))?;
        done = done.saturating_add(got as u64);
        progress.advance(done, None);
    }
}
