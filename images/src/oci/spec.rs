//! The documents of the OCI image specification 1.1 and of docker's image manifest version 2, schema 2, as far as skiff reads them.
//!
//! Each is parsed once, from bounded bytes, into owned values. What is not known is left alone, as the specifications ask.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;

/// The most bytes that a manifest or an index may have (distribution-spec, "Pushing manifests": at least 4 MiB are to be taken).
pub const MAX_MANIFEST: u64 = 4 << 20;
/// The most bytes that a configuration may have.
pub const MAX_CONFIG: u64 = 8 << 20;
/// The most layers that an image may have.
pub const MAX_LAYERS: usize = 512;
/// The most manifests that an index may have.
const MAX_MANIFESTS: usize = 1024;

/// An OCI index (image-spec, image-index.md).
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An OCI manifest (image-spec, manifest.md).
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The configuration of an OCI image (image-spec, config.md).
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// An OCI layer; `+gzip` or `+zstd` may stand behind it.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Docker's index.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// A document is none that skiff can use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is too long.
    #[error("the {what} has {size} bytes, more than the {most} that one may have")]
    Long {
        /// What it is.
        what: &'static str,
        /// Its length.
        size: u64,
        /// The most.
        most: u64,
    },
    /// It is no JSON, or misses something.
    #[error("the {what} cannot be read")]
    Json {
        /// What it is.
        what: &'static str,
        /// What serde says.
        #[source]
        source: serde_json::Error,
    },
    /// It says something that it must not say.
    #[error("the {what} is wrong: {why}")]
    Wrong {
        /// What it is.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// It has nothing for this machine.
    #[error("the image is not there for linux/amd64, only for {0}")]
    Platform(String),
}

/// What names a content (image-spec, descriptor.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// Its content.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// In an index: what it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// What else is said of it.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Of a content, with nothing else said.
    #[must_use]
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest, size, platform: None, annotations: BTreeMap::new() }
    }

    /// Of a content, with one more thing said.
    #[must_use]
    pub fn annotated(mut self, key: &str, value: impl Into<String>) -> Self {
        self.annotations.insert(key.to_owned(), value.into());
        self
    }
}

/// What an image runs on (image-spec, image-index.md, "platform").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// As Go names it: `amd64`.
    pub architecture: String,
    /// As Go names it: `linux`.
    pub os: String,
    /// A variant of the processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

/// An index: manifests for several platforms, or of several names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// 2.
    pub schema_version: u32,
    /// What it says that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What it names.
    pub manifests: Vec<Descriptor>,
}

/// A manifest: what an image is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: u32,
    /// What it says that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What kind of artifact it is, if it is no container's image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Its configuration.
    pub config: Descriptor,
    /// Its layers, the lowest first.
    pub layers: Vec<Descriptor>,
    /// What else is said of it.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// Its media type: what it says, or OCI's.
    #[must_use]
    pub fn media_type(&self) -> &str {
        self.media_type.as_deref().unwrap_or(OCI_MANIFEST)
    }
}

/// What a name in a registry or layout leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// Manifests to choose from.
    Index(Index),
    /// An image.
    Manifest(Box<Manifest>),
}

/// The keys that tell documents apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    #[serde(default)]
    schema_version: u32,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// The index or manifest in `bytes`; `said` is the media type that it was called by, if it was.
    ///
    /// # Errors
    /// If it is neither, or could be taken for both (image-spec, manifest.md, "mediaType"; CVE-2021-41190), or is too large.
    pub fn parse(bytes: &[u8], said: Option<&str>) -> Result<Self, Error> {
        let what = "manifest";
        fits(bytes, what, MAX_MANIFEST)?;
        let outline: Outline = json(bytes, what)?;
        let wrong = |why: &str| Error::Wrong { what, why: why.to_owned() };
        if outline.schema_version == 1 {
            return Err(wrong(
                "it is of docker's schema 1, which nobody should use any more: push the image again",
            ));
        }
        if outline.schema_version != 2 {
            return Err(wrong("its schemaVersion is not 2"));
        }
        let is_index = outline.manifests.is_some();
        if is_index == (outline.layers.is_some() || outline.config.is_some()) {
            return Err(wrong("it is not clearly an index or an image's manifest"));
        }
        for called in [outline.media_type.as_deref(), said].into_iter().flatten() {
            let contradicts = match called {
                OCI_INDEX | DOCKER_INDEX => !is_index,
                OCI_MANIFEST | DOCKER_MANIFEST => is_index,
                _ => false,
            };
            if contradicts {
                return Err(wrong("it is not what its media type says"));
            }
        }
        if is_index {
            let index: Index = json(bytes, "index")?;
            return match index.manifests.len() {
                0..=MAX_MANIFESTS => Ok(Self::Index(index)),
                _ => Err(Error::Wrong {
                    what: "index",
                    why: format!("it has more than {MAX_MANIFESTS} manifests"),
                }),
            };
        }
        let manifest: Manifest = json(bytes, what)?;
        if manifest.layers.len() > MAX_LAYERS {
            return Err(wrong(&format!("it has more than {MAX_LAYERS} layers")));
        }
        Ok(Self::Manifest(Box::new(manifest)))
    }
}

impl Index {
    /// The manifest of this index that is for linux/amd64: the one that asks for the least of the processor.
    ///
    /// # Errors
    /// If there is none; the message has what there is.
    pub fn choose(&self) -> Result<&Descriptor, Error> {
        let fitting = self.manifests.iter().filter(|entry| entry.platform.as_ref().is_some_and(fits_here));
        let variant =
            |entry: &&Descriptor| entry.platform.as_ref().and_then(|platform| platform.variant.clone());
        if let Some(entry) = fitting.min_by_key(variant) {
            return Ok(entry);
        }
        match self.manifests.as_slice() {
            // A layout of one image often does not say; its configuration will.
            [only] if only.platform.is_none() => Ok(only),
            [] => Err(Error::Wrong { what: "index", why: "it has no manifests".to_owned() }),
            _ => {
                let mut platforms: Vec<String> = self
                    .manifests
                    .iter()
                    .filter_map(|entry| entry.platform.as_ref())
                    .map(Platform::to_string)
                    .collect();
                platforms.sort();
                platforms.dedup();
                platforms.truncate(20);
                let list = if platforms.is_empty() {
                    "platforms that it does not name".to_owned()
                } else {
                    platforms.join(", ")
                };
                Err(Error::Platform(list))
            }
        }
    }
}

fn fits_here(platform: &Platform) -> bool {
    platform.os == "linux" && platform.architecture == "amd64"
}

/// The configuration of a container's image (image-spec, config.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// What it runs on.
    #[serde(flatten)]
    pub platform: Platform,
    /// When it was made, as RFC 3339 writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// What is run in it.
    #[serde(default, deserialize_with = "or_default")]
    pub config: Execution,
    /// What its layers are.
    pub rootfs: RootFs,
}

/// What is run in a container if nobody says otherwise (image-spec, config.md, "config").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Execution {
    /// Who: `user`, `uid`, `user:group`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Ports that it listens on: `port/tcp`, `port/udp`, `port`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Nothing>,
    /// `NAME=VALUE`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// What a command line is put behind.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// The command line.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Where it starts.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// What there is to say about it.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// The value of a set's members: an empty object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Nothing {}

impl<'de> Deserialize<'de> for Nothing {
    /// Whatever stands there, null too.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(from).map(|_| Self {})
    }
}

/// What an image's layers are when they are unpacked (image-spec, config.md, "rootfs").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of each layer's tar, the lowest first.
    #[serde(default, deserialize_with = "or_default")]
    pub diff_ids: Vec<Digest>,
}

impl Config {
    /// The configuration in `bytes`, of an image with this many layers.
    ///
    /// # Errors
    /// If it is none, or is not for linux/amd64, or has not one name for each layer.
    pub fn parse(bytes: &[u8], layers: usize) -> Result<Self, Error> {
        let what = "configuration";
        fits(bytes, what, MAX_CONFIG)?;
        let config: Self = json(bytes, what)?;
        if !fits_here(&config.platform) {
            return Err(Error::Platform(config.platform.to_string()));
        }
        let named = config.rootfs.diff_ids.len();
        if named != layers {
            return Err(Error::Wrong {
                what,
                why: format!("it names {named} layers, but the image has {layers}"),
            });
        }
        Ok(config)
    }
}

/// `null` where a value is expected, as Go writes its empty maps and lists, is the default.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// Whether a document's length is one that it may have.
fn fits(bytes: &[u8], what: &'static str, most: u64) -> Result<(), Error> {
    let size = bytes.len() as u64;
    if size > most { Err(Error::Long { what, size, most }) } else { Ok(()) }
}

/// The document in `bytes`.
pub(super) fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &'static str) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Json { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn manifest(layers: usize) -> String {
        let layer = format!(r#"{{"mediaType":"{OCI_LAYER}+gzip","size":7,"digest":"sha256:{HEX}"}}"#);
        let config =
            format!(r#"{{"mediaType":"{OCI_CONFIG}","size":2,"digest":"sha256:{HEX}","annotations":null}}"#);
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, vec![layer; layers].join(","))
    }

    fn index(platforms: &[&str]) -> Index {
        let entry = |platform: &&str| {
            let mut parts = platform.split('/').map(str::to_owned);
            let (os, architecture) = (parts.next().unwrap(), parts.next().unwrap());
            let platform = Platform { os, architecture, variant: parts.next() };
            Descriptor {
                platform: Some(platform),
                ..Descriptor::new(OCI_MANIFEST, HEX_DIGEST.parse().unwrap(), 1)
            }
        };
        Index { schema_version: 2, media_type: None, manifests: platforms.iter().map(entry).collect() }
    }

    const HEX_DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_manifest_and_an_index_are_told_apart_by_what_they_hold() {
        let read = Document::parse(manifest(2).as_bytes(), Some(OCI_MANIFEST)).unwrap();
        assert!(matches!(&read, Document::Manifest(manifest) if manifest.layers.len() == 2));
        let text = r#"{"schemaVersion":2,"manifests":[]}"#;
        assert!(matches!(Document::parse(text.as_bytes(), None).unwrap(), Document::Index(_)));
        // One document, two readings.
        let both = manifest(1).replacen('{', r#"{"manifests":[],"#, 1);
        for (text, said) in [
            (both.as_str(), None),
            (r#"{"schemaVersion":2}"#, None),
            (text, Some(OCI_MANIFEST)),
            (&manifest(1), Some(DOCKER_INDEX)),
            (&manifest(MAX_LAYERS + 1), None),
            (&manifest(1).replace("\"size\":7", "\"size\":-7"), None),
            (&manifest(1).replace("sha256:", "sha256:../"), None),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, None),
            ("[]", None),
        ] {
            assert!(Document::parse(text.as_bytes(), said).is_err(), "{text:.200}");
        }
        let long = " ".repeat(MAX_MANIFEST as usize + 1);
        assert!(matches!(Document::parse(long.as_bytes(), None), Err(Error::Long { .. })));
    }

    #[test]
    fn the_manifest_for_this_machine_is_chosen() {
        let chosen = |platforms: &[&str]| {
            index(platforms)
                .choose()
                .map(|entry| entry.platform.clone().unwrap().to_string())
                .map_err(|error| error.to_string())
        };
        assert_eq!(chosen(&["linux/arm64", "linux/amd64", "unknown/unknown"]).unwrap(), "linux/amd64");
        assert_eq!(chosen(&["linux/amd64/v3", "linux/amd64/v2"]).unwrap(), "linux/amd64/v2");
        assert_eq!(chosen(&["linux/amd64/v3", "linux/amd64"]).unwrap(), "linux/amd64");
        let said = chosen(&["linux/arm64", "windows/amd64"]).unwrap_err();
        assert!(said.contains("linux/arm64, windows/amd64"), "{said}");
        assert!(chosen(&[]).is_err());
    }

    #[test]
    fn go_writes_null_for_what_is_empty() {
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Env":null,"Cmd":["sh"],"ExposedPorts":{{"80/tcp":{{}}}},"Volumes":null}},"rootfs":{{"type":"layers","diff_ids":["{HEX_DIGEST}"]}},"history":[]}}"#
        );
        let config = Config::parse(text.as_bytes(), 1).unwrap();
        assert_eq!(config.config.cmd, ["sh"]);
        assert_eq!(config.config.exposed_ports.len(), 1);
        assert!(Config::parse(text.as_bytes(), 2).is_err());
        assert!(matches!(Config::parse(text.replace("amd64", "arm").as_bytes(), 1), Err(Error::Platform(_))));
        let null = text.replace(r#"{"Env":null"#, r#"null,"x":{"Env":null"#);
        assert_eq!(Config::parse(null.as_bytes(), 1).unwrap().config, Execution::default());
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_fall_over(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Document::parse(&bytes, None);
            let _ = Config::parse(&bytes, 1);
        }

        #[test]
        fn a_document_is_read_as_it_is_written(size: u64, layers in 0_usize..4, key in "[a-z.]{0,9}", value: String) {
            let layer = Descriptor::new(OCI_LAYER, Digest::of(value.as_bytes()), size).annotated(&key, value);
            let written = Manifest {
                schema_version: 2,
                media_type: Some(OCI_MANIFEST.to_owned()),
                artifact_type: None,
                config: Descriptor::new(OCI_CONFIG, Digest::of(b""), 0),
                layers: vec![layer; layers],
                annotations: BTreeMap::new(),
            };
            let bytes = serde_json::to_vec(&written).unwrap();
            prop_assert_eq!(Document::parse(&bytes, Some(OCI_MANIFEST)).unwrap(), Document::Manifest(Box::new(written)));
        }

        #[test]
        fn half_a_document_is_none(cut in 0_usize..300) {
            let text = manifest(1);
            prop_assume!(cut < text.len());
            prop_assert!(Document::parse(&text.as_bytes()[..cut], None).is_err());
        }
    }
}
