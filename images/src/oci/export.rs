//! Images as OCI layouts and docker archives.
//!
//! What came from a container goes out as it came, to the byte. Of other images it is their root file system as one layer: containers have
//! no kernel. Written aside and renamed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write as _};
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::spec::{
    self, Config, Descriptor, Document, Execution, MAX_CONFIG, MAX_MANIFEST, Platform, RootFs,
};
use super::{Error, TITLE, execution};
use crate::compress;
use crate::digest::Digest;
use crate::disk;
use crate::manifest::{Blob, Manifest, Source};
use crate::name::Name;
use crate::progress::Progress;
use crate::store::{Scratch, Store};

/// How much is copied at once, in bytes.
const CHUNK: usize = 1 << 20;
/// How much may be written until it is asked again whether there is room, in bytes.
const STRIDE: u64 = 64 << 20;
/// How well a layer is compressed that is made here.
const LEVEL: u32 = 6;

/// How an image is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An OCI layout, as a directory.
    Layout,
    /// A tar of an OCI layout.
    LayoutTar,
    /// What `docker load` reads.
    Docker,
}

/// A container's image, ready to be written.
struct Parts {
    manifest: Vec<u8>,
    media_type: String,
    config: Vec<u8>,
    config_digest: Digest,
    layers: Vec<Part>,
    /// What the layers are in, if they were made for this.
    _made: Option<Scratch>,
}

struct Part {
    blob: Blob,
    path: PathBuf,
    diff_id: Digest,
}

/// Write an image, called `name`, to `to`, where nothing is yet. Says whether its kernel is left out, since it is no container's.
///
/// # Errors
/// If something is there already, a file of the image is missing or damaged, or the host fails: then nothing is at `to`.
pub fn export(
    store: &Store,
    image: &Manifest,
    name: Option<&Name>,
    to: &Path,
    format: Format,
    progress: &mut dyn Progress,
) -> Result<bool, Error> {
    let failed = || Error::io("write", to);
    if to.symlink_metadata().is_ok() {
        return Err(failed()(io::ErrorKind::AlreadyExists.into()));
    }
    let content = match &image.source {
        Source::Oci { content, .. } if !content.is_empty() => Some(content.as_slice()),
        _ => None,
    };
    let parts = match content {
        Some(content) => Parts::kept(store, content)?,
        None => Parts::made(store, image, progress)?,
    };
    let mut aside = to.as_os_str().to_owned();
    aside.push(format!(".new-{}", std::process::id()));
    let aside = PathBuf::from(aside);
    progress.step(&format!("writing {}", to.display()));
    let written = parts.write(&aside, name, format, progress).and_then(|()| fs::rename(&aside, to));
    if let Err(error) = written {
        let _ = if format == Format::Layout { fs::remove_dir_all(&aside) } else { fs::remove_file(&aside) };
        return Err(failed()(error));
    }
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed())?;
    Ok(content.is_none())
}

impl Parts {
    /// As it came.
    fn kept(store: &Store, content: &[Blob]) -> Result<Self, Error> {
        let [manifest, config, layers @ ..] = content else {
            return Err(Error::Unusable {
                path: store.root().to_owned(),
                why: "it has no configuration".to_owned(),
            });
        };
        let manifest = small(store, manifest, MAX_MANIFEST)?;
        let Document::Manifest(read) = Document::parse(&manifest, None)? else {
            return Err(spec::Error::Wrong { what: "manifest", why: "it is an index".to_owned() }.into());
        };
        let config_bytes = small(store, config, MAX_CONFIG)?;
        let diff_ids = Config::parse(&config_bytes, layers.len())?.rootfs.diff_ids;
        let part = |(blob, diff_id): (&Blob, Digest)| Part {
            blob: *blob,
            path: store.blob_path(&blob.digest),
            diff_id,
        };
        Ok(Self {
            media_type: read.media_type().to_owned(),
            manifest,
            config_digest: config.digest,
            config: config_bytes,
            layers: layers.iter().zip(diff_ids).map(part).collect(),
            _made: None,
        })
    }

    /// Of a root file system.
    fn made(store: &Store, image: &Manifest, progress: &mut dyn Progress) -> Result<Self, Error> {
        let scratch = store.scratch()?;
        let packed = scratch.path().join("layer.tar.gz");
        let top = image.disk.layers.first().ok_or_else(|| Error::Disks("there is none".to_owned()))?;
        let top = store.blob_path(&top.digest);
        let mut layer = LayerFile::create(store, &packed).map_err(Error::io("write", &packed))?;
        disk::archive(&top, &image.cmdline, scratch.path(), &mut layer, progress)?;
        let (diff_id, blob) = layer.finish().map_err(Error::io("write", &packed))?;
        let config = Config {
            platform: Platform { architecture: "amd64".to_owned(), os: "linux".to_owned(), variant: None },
            created: None,
            config: Execution {
                labels: [(TITLE.to_owned(), image.os.clone())].into(),
                ..execution(&image.defaults)
            },
            rootfs: RootFs { kind: "layers".to_owned(), diff_ids: vec![diff_id] },
        };
        let config = written(&config, "configuration")?;
        let config_digest = Digest::of(&config);
        let layer_type = format!("{}+gzip", spec::OCI_LAYER);
        let manifest = spec::Manifest {
            schema_version: 2,
            media_type: Some(spec::OCI_MANIFEST.to_owned()),
            artifact_type: None,
            config: Descriptor::new(spec::OCI_CONFIG, config_digest, config.len() as u64),
            layers: vec![Descriptor::new(&layer_type, blob.digest, blob.size)],
            annotations: BTreeMap::new(),
        };
        Ok(Self {
            manifest: written(&manifest, "manifest")?,
            media_type: spec::OCI_MANIFEST.to_owned(),
            config,
            config_digest,
            layers: vec![Part { blob, path: packed, diff_id }],
            _made: Some(scratch),
        })
    }

    fn write(
        &self,
        to: &Path,
        name: Option<&Name>,
        format: Format,
        progress: &mut dyn Progress,
    ) -> io::Result<()> {
        let mut out = match format {
            Format::Layout => Out::directory(to)?,
            Format::LayoutTar | Format::Docker => Out::tar(to)?,
        };
        match format {
            Format::Docker => self.docker(&mut out, name, progress)?,
            _ => self.layout(&mut out, name, progress)?,
        }
        out.finish()
    }

    fn layout(&self, out: &mut Out, name: Option<&Name>, progress: &mut dyn Progress) -> io::Result<()> {
        let digest = Digest::of(&self.manifest);
        let mut entry = Descriptor::new(&self.media_type, digest, self.manifest.len() as u64);
        entry.platform =
            Some(Platform { architecture: "amd64".to_owned(), os: "linux".to_owned(), variant: None });
        if let Some(name) = name {
            entry = entry.annotated("org.opencontainers.image.ref.name", name.tag());
            entry = entry.annotated("io.containerd.image.name", name.to_string());
        }
        let index = spec::Index {
            schema_version: 2,
            media_type: Some(spec::OCI_INDEX.to_owned()),
            manifests: vec![entry],
        };
        out.bytes("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        out.bytes("index.json", &serde_json::to_vec(&index)?)?;
        out.bytes(&blob_name(&digest), &self.manifest)?;
        out.bytes(&blob_name(&self.config_digest), &self.config)?;
        let total = self.layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.blob.size));
        let (mut there, mut done) = (BTreeSet::from([digest, self.config_digest]), 0_u64);
        for layer in &self.layers {
            if there.insert(layer.blob.digest) {
                out.copy(&blob_name(&layer.blob.digest), &mut File::open(&layer.path)?, layer.blob.size)?;
            }
            done = done.saturating_add(layer.blob.size);
            progress.advance(done, Some(total));
        }
        Ok(())
    }

    fn docker(&self, out: &mut Out, name: Option<&Name>, progress: &mut dyn Progress) -> io::Result<()> {
        let config = format!("{}.json", self.config_digest.hex());
        out.bytes(&config, &self.config)?;
        let (mut there, mut names) = (BTreeSet::new(), Vec::new());
        for (layer, done) in self.layers.iter().zip(1_u64..) {
            let member = format!("{}.tar", layer.diff_id.hex());
            if there.insert(layer.diff_id) {
                // A member's length stands before it.
                let open = || compress::Reader::new(BufReader::new(File::open(&layer.path)?));
                let (digest, len) = Digest::of_reader(&mut open()?, |_| {})?;
                if digest != layer.diff_id {
                    let why = format!(
                        "the layer {} unpacks to {digest}, not to {}",
                        layer.blob.digest, layer.diff_id
                    );
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                }
                out.copy(&member, &mut open()?, len)?;
            }
            names.push(member);
            progress.advance(done, Some(self.layers.len() as u64));
        }
        let tags: Vec<String> = name.iter().map(ToString::to_string).collect();
        let manifest = json!([{ "Config": config, "RepoTags": tags, "Layers": names }]);
        out.bytes("manifest.json", &serde_json::to_vec(&manifest)?)
    }
}

/// Where files go.
enum Out {
    Directory(PathBuf),
    Tar(Box<tar::Builder<BufWriter<File>>>),
}

impl Out {
    fn directory(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path.join("blobs/sha256"))?;
        Ok(Self::Directory(path.to_owned()))
    }

    fn tar(path: &Path) -> io::Result<Self> {
        let mut builder = tar::Builder::new(BufWriter::with_capacity(CHUNK, File::create(path)?));
        builder.sparse(false);
        Ok(Self::Tar(Box::new(builder)))
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.copy(name, &mut &bytes[..], bytes.len() as u64)
    }

    /// A file of exactly `len` bytes.
    fn copy(&mut self, name: &str, from: &mut dyn Read, len: u64) -> io::Result<()> {
        match self {
            Self::Directory(dir) => {
                let mut file = File::create_new(dir.join(name))?;
                if io::copy(&mut from.take(len), &mut file)? != len {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                file.sync_all()
            }
            Self::Tar(builder) => {
                let mut header = tar::Header::new_ustar();
                header.set_size(len);
                header.set_mode(0o644);
                header.set_entry_type(tar::EntryType::Regular);
                let mut from = Exactly { from, left: len };
                builder.append_data(&mut header, name, &mut from)
            }
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Directory(dir) => {
                for dir in [dir.join("blobs/sha256"), dir.join("blobs"), dir] {
                    File::open(dir)?.sync_all()?;
                }
                Ok(())
            }
            Self::Tar(builder) => {
                let mut writer = builder.into_inner()?;
                writer.flush()?;
                writer.get_ref().sync_all()
            }
        }
    }
}

/// A reader that fails if there is less than was promised.
struct Exactly<'a> {
    from: &'a mut dyn Read,
    left: u64,
}

impl Read for Exactly<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = into.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let got = self.from.read(into.get_mut(..most).unwrap_or_default())?;
        if got == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left = self.left.saturating_sub(got as u64);
        Ok(got)
    }
}

/// The file of a layer that is compressed while it is written.
struct LayerFile<'a> {
    store: &'a Store,
    path: &'a Path,
    encoder: flate2::write::GzEncoder<File>,
    /// Of what is not compressed.
    hasher: Sha256,
    /// How much more may be written until it is asked again whether there is room, in bytes.
    room: u64,
}

impl<'a> LayerFile<'a> {
    fn create(store: &'a Store, path: &'a Path) -> io::Result<Self> {
        let file = File::create_new(path)?;
        let encoder = flate2::write::GzEncoder::new(file, flate2::Compression::new(LEVEL));
        Ok(Self { store, path, encoder, hasher: Sha256::new(), room: 0 })
    }

    /// The digest of what was written, and what the file is.
    fn finish(self) -> io::Result<(Digest, Blob)> {
        self.encoder.finish()?;
        let (digest, size) = Digest::of_reader(&mut File::open(self.path)?, |_| {})?;
        Ok((Digest::from_hasher(self.hasher), Blob { digest, size }))
    }
}

impl io::Write for LayerFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.room < bytes.len() as u64 {
            self.store.room(STRIDE).map_err(io::Error::other)?;
            self.room = STRIDE;
        }
        let written = self.encoder.write(bytes)?;
        self.hasher.update(bytes.get(..written).unwrap_or_default());
        self.room = self.room.saturating_sub(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.encoder.flush()
    }
}

/// A document of the store.
fn small(store: &Store, blob: &Blob, most: u64) -> Result<Vec<u8>, Error> {
    let path = store.blob_path(&blob.digest);
    let mut bytes = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(most).read_to_end(&mut bytes));
    read.map_err(Error::io("read", path))?;
    let got = Digest::of(&bytes);
    if got != blob.digest {
        return Err(Error::Digest { what: "a file of the image".to_owned(), wanted: blob.digest, got });
    }
    Ok(bytes)
}

fn written(document: &impl serde::Serialize, what: &'static str) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(document).map_err(|source| spec::Error::Json { what, source }.into())
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
