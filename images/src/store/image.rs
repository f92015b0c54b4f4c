//! Images: put in, looked for, and listed.

use super::{MAX_SMALL, Store, StoreError, digest_of, file_name};
use crate::digest::Digest;
use crate::manifest::{Manifest, SCHEMA, Source};
use crate::name::Name;

/// The fewest digits of an ID that stand for it.
const MIN_DIGITS: usize = 4;
/// How many IDs an error shows.
const SHOWN: usize = 5;

/// An image of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The digest of its manifest.
    pub id: Digest,
    /// What it is.
    pub manifest: Manifest,
    /// What it is called, in order; may be nothing.
    pub names: Vec<Name>,
}

impl Image {
    /// Its first name, or its short ID.
    #[must_use]
    pub fn called(&self) -> String {
        self.names.first().map_or_else(|| self.id.short(), ToString::to_string)
    }
}

impl Store {
    /// Keep an image, durably. Its files must be there. Says its ID; it has no name yet, but stays as long as this store lives.
    ///
    /// # Errors
    /// If a file of it is missing, or the host fails.
    pub fn put(&self, manifest: &Manifest) -> Result<Digest, StoreError> {
        let text = serde_json::to_vec(manifest).map_err(|error| self.unwritable(error.into()))?;
        if text.len() as u64 > MAX_SMALL {
            return Err(self.unwritable(std::io::ErrorKind::FileTooLarge.into()));
        }
        self.put_text(&text)
    }

    /// The same of a manifest as it was written elsewhere: its ID stays what it was.
    ///
    /// # Errors
    /// If it is none, a file of it is missing, or the host fails.
    pub fn put_text(&self, text: &[u8]) -> Result<Digest, StoreError> {
        let shared = self.shared()?;
        let id = Digest::of(text);
        let path = self.manifest_path(&id);
        for blob in parse(&path, text)?.blobs() {
            if !self.has(&blob)? {
                return Err(StoreError::missing(self.blob_path(&blob.digest)));
            }
        }
        self.note(&shared, id)?;
        self.replace(&path, text, true)?;
        Ok(id)
    }

    fn unwritable(&self, source: std::io::Error) -> StoreError {
        StoreError::io("write in", &self.manifests())(source)
    }

    /// Where the manifest of the image `id` is, if it is there.
    #[must_use]
    pub fn manifest_path(&self, id: &Digest) -> std::path::PathBuf {
        self.manifests().join(file_name(id))
    }

    /// The manifest of the image `id`.
    ///
    /// # Errors
    /// If there is none, it is damaged or of a newer skiff, or the host fails.
    pub fn get(&self, id: &Digest) -> Result<Manifest, StoreError> {
        let path = self.manifest_path(id);
        let Some(text) = self.read_small(&path)? else {
            let hint = "skiff image ls shows all".to_owned();
            return Err(StoreError::Unknown { text: id.short(), hint });
        };
        if Digest::of(&text) != *id {
            return Err(StoreError::Damaged { path, why: "its content is another".to_owned() });
        }
        parse(&path, &text)
    }

    /// The IDs of all images, with and without names.
    ///
    /// # Errors
    /// If the host fails.
    pub fn ids(&self) -> Result<Vec<Digest>, StoreError> {
        Ok(self.list_dir(&self.manifests())?.iter().filter_map(|name| digest_of(name)).collect())
    }

    /// All images, by their first names, those without one last; and what is wrong with those that cannot be read.
    ///
    /// # Errors
    /// If the host fails.
    pub fn list(&self) -> Result<(Vec<Image>, Vec<StoreError>), StoreError> {
        let names = self.names()?;
        let (mut images, mut wrong) = (Vec::new(), Vec::new());
        for id in self.ids()? {
            match self.get(&id) {
                Ok(manifest) => {
                    let own = names.iter().filter(|(_, of)| **of == id).map(|(name, _)| name.clone());
                    images.push(Image { id, manifest, names: own.collect() });
                }
                // Pruned meanwhile.
                Err(StoreError::Unknown { .. }) => {}
                Err(error) => wrong.push(error),
            }
        }
        images.sort_by_key(|image| (image.names.is_empty(), image.names.first().cloned(), image.id));
        Ok((images, wrong))
    }

    /// The image that `text` stands for: a name (`debian:12`; without a tag the one of `latest`), an ID, or at least 4 first digits of one.
    ///
    /// # Errors
    /// If there is none, or more than one, or the host fails.
    pub fn resolve(&self, text: &str) -> Result<Image, StoreError> {
        let id = self.find(text)?;
        let manifest = self.get(&id)?;
        let names = self.names()?.into_iter().filter(|(_, of)| *of == id).map(|(name, _)| name).collect();
        Ok(Image { id, manifest, names })
    }

    /// The same, and no prune touches it for as long as this store lives.
    ///
    /// # Errors
    /// As [`Store::resolve`].
    pub fn hold(&self, text: &str) -> Result<Image, StoreError> {
        let shared = self.shared()?;
        let image = self.resolve(text)?;
        self.note(&shared, image.id)?;
        Ok(image)
    }

    fn find(&self, text: &str) -> Result<Digest, StoreError> {
        if let Ok(name) = text.parse::<Name>()
            && let Some(id) = self.named(&name)?
        {
            return Ok(id);
        }
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let hexadecimal = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if digits.len() >= MIN_DIGITS && hexadecimal {
            let mut ids = self.ids()?;
            ids.retain(|id| id.hex().starts_with(digits));
            match ids.as_slice() {
                [] => {}
                [id] => return Ok(*id),
                several => {
                    let ids = several.iter().take(SHOWN).map(Digest::short).collect();
                    return Err(StoreError::Ambiguous { text: text.to_owned(), ids });
                }
            }
        }
        if let Some((_, digest)) = text.rsplit_once('@')
            && let Ok(digest) = digest.parse()
            && let Some(id) = self.fetched(&digest)?
        {
            return Ok(id);
        }
        Err(self.unknown(text)?)
    }

    /// The image that came from a registry as `digest`, whichever it was.
    fn fetched(&self, digest: &Digest) -> Result<Option<Digest>, StoreError> {
        let at_its_end = format!("@{digest}");
        for id in self.ids()? {
            match self.get(&id).map(|image| image.source) {
                Ok(Source::Oci { digest: own, .. }) if own == *digest => return Ok(Some(id)),
                // Of a list of images for several machines its digest is not the image's own.
                Ok(Source::Oci { reference: Some(from), .. }) if from.ends_with(&at_its_end) => {
                    return Ok(Some(id));
                }
                // One that is damaged is another's to tell.
                _ => {}
            }
        }
        Ok(None)
    }

    fn unknown(&self, text: &str) -> Result<StoreError, StoreError> {
        let names: Vec<String> = self.names()?.keys().map(ToString::to_string).collect();
        let repository =
            |name: &str| name.rsplit_once(':').map_or(name.to_owned(), |(name, _)| name.to_owned());
        let tags: Vec<&str> =
            names.iter().filter(|name| repository(name) == text).map(String::as_str).take(SHOWN).collect();
        let hint = if !tags.is_empty() {
            format!("there is {}", tags.join(", "))
        } else if let Some(close) = closest(text, &names) {
            format!("did you mean '{close}'?")
        } else if names.is_empty() {
            "skiff image build, pull and import make some".to_owned()
        } else {
            "skiff image ls shows all; skiff image build, pull and import make more".to_owned()
        };
        Ok(StoreError::Unknown { text: text.to_owned(), hint })
    }
}

/// What a manifest's text says.
fn parse(path: &std::path::Path, text: &[u8]) -> Result<Manifest, StoreError> {
    #[derive(serde::Deserialize)]
    struct Schema {
        schema: u32,
    }
    let damaged =
        |error: serde_json::Error| StoreError::Damaged { path: path.to_owned(), why: error.to_string() };
    let Schema { schema } = serde_json::from_slice(text).map_err(damaged)?;
    if schema > SCHEMA {
        return Err(StoreError::Newer { path: path.to_owned(), found: schema, known: SCHEMA });
    }
    serde_json::from_slice(text).map_err(damaged)
}

/// The name that `wrong` was most likely meant to be: most of its letters are the same.
fn closest<'a>(wrong: &str, names: &'a [String]) -> Option<&'a str> {
    let likeness = |name: &str| {
        // A tag that nobody wrote is not missed.
        let short = name.strip_suffix(":latest").unwrap_or(name);
        strsim::normalized_damerau_levenshtein(wrong, short)
    };
    let all = names.iter().map(|name| (likeness(name), name.as_str()));
    let best = all.max_by(|(one, _), (other, _)| one.total_cmp(other));
    best.filter(|(likeness, _)| *likeness >= 0.5).map(|(_, name)| name)
}
