//! `pull`: an image from a registry.

use std::collections::BTreeSet;

use ureq::http::header;

use super::client::{Call, Client, bounded, text};
use super::download::fetch;
use super::error::Error;
use super::transfer::Transfer;
use super::{Options, Reference, vm};
use crate::digest::Digest;
use crate::manifest::{Blob, Source};
use crate::oci::spec::{self, Config, Descriptor, Document, MAX_CONFIG, MAX_MANIFEST};
use crate::oci::{self, Content, Machine};
use crate::progress::Progress;
use crate::store::Store;

/// How many indexes may lead to each other.
const MAX_DEPTH: u32 = 4;
/// Where a registry says what a manifest's digest is.
const CONTENT_DIGEST: header::HeaderName = header::HeaderName::from_static("docker-content-digest");

/// Make the image at `reference` one of the store's, and say its ID. One that is there already is not fetched or made again unless
/// `anew` is set.
///
/// # Errors
/// If the registry does not answer, does not have it or is not to be trusted, it is no image for this machine, or the store is full.
pub fn pull(
    store: &Store,
    reference: &Reference,
    options: &Options,
    anew: bool,
    machine: &mut dyn Machine,
    progress: &mut dyn Progress,
) -> Result<Digest, Error> {
    progress.step(&format!("asking {}", reference.registry()));
    let client = Client::new(reference, "pull", &[], options)?;
    let (bytes, manifest) = find(&client, reference)?;
    if manifest.config.media_type == vm::CONFIG {
        return vm::pull(&client, store, &manifest, progress);
    }
    let digest = Digest::of(&bytes);
    if !anew && let Some(id) = known(store, &digest)? {
        return Ok(id);
    }
    if let Some(layer) = manifest.layers.iter().find(|layer| !oci::is_layer(&layer.media_type)) {
        return Err(oci::Error::Layer(layer.media_type.clone()).into());
    }
    let config_bytes = document(&client, &manifest.config, "configuration", MAX_CONFIG)?;
    let config = Config::parse(&config_bytes, manifest.layers.len())?;
    let layers: Vec<Blob> =
        manifest.layers.iter().map(|layer| Blob { digest: layer.digest, size: layer.size }).collect();
    fetch_all(&client, store, reference, &layers, progress)?;
    let content = Content {
        manifest: store.add_bytes(&bytes)?,
        config_blob: store.add_bytes(&config_bytes)?,
        config,
        layers,
        reference: Some(reference.to_string()),
    };
    let image = oci::assemble(store, &content, machine, progress)?;
    Ok(store.put(&image)?)
}

/// All of these blobs, each once.
fn fetch_all(
    client: &Client,
    store: &Store,
    reference: &Reference,
    blobs: &[Blob],
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    let blobs: Vec<Blob> = blobs.iter().filter(|blob| seen.insert(blob.digest)).copied().collect();
    let total = blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.size));
    progress.step(&format!("pulling {reference}"));
    let transfer = Transfer::default();
    transfer.run(&blobs, total, progress, |blob| fetch(client, store, blob, &transfer))
}

/// The image of the store that was made of this manifest.
fn known(store: &Store, digest: &Digest) -> Result<Option<Digest>, Error> {
    let (images, _) = store.list()?;
    let made_of = |source: &Source| matches!(source, Source::Oci { digest: of, content, .. } if of == digest && !content.is_empty());
    let found = images.iter().find(|image| made_of(&image.manifest.source));
    match found {
        Some(image) => Ok(Some(store.hold(&image.id.to_string())?.id)),
        None => Ok(None),
    }
}

/// The manifest for this machine, and its bytes.
fn find(client: &Client, reference: &Reference) -> Result<(Vec<u8>, spec::Manifest), Error> {
    let (bytes, said) = manifest(client, &reference.target(), &format!("image {reference}"))?;
    if let Some(wanted) = reference.digest() {
        check(client, wanted, &bytes)?;
    }
    let mut found = (Document::parse(&bytes, said.as_deref())?, bytes);
    for _ in 0..MAX_DEPTH {
        let index = match found {
            (Document::Manifest(manifest), bytes) => return Ok((bytes, *manifest)),
            (Document::Index(index), _) => index,
        };
        let entry = index.choose()?;
        let (bytes, _) = manifest(client, &entry.digest.to_string(), &format!("manifest {}", entry.digest))?;
        check(client, &entry.digest, &bytes)?;
        found = (Document::parse(&bytes, Some(&entry.media_type))?, bytes);
    }
    Err(spec::Error::Wrong { what: "index", why: format!("it leads to more than {MAX_DEPTH} others") }.into())
}

/// The manifest that is called `target`, and the type that the registry says.
fn manifest(client: &Client, target: &str, what: &str) -> Result<(Vec<u8>, Option<String>), Error> {
    let types = [spec::OCI_INDEX, spec::OCI_MANIFEST, spec::DOCKER_INDEX, spec::DOCKER_MANIFEST];
    let url = client.url("manifests", target);
    let headers = [(header::ACCEPT, types.join(", "))];
    let answer = client.send(&Call { headers: &headers, ..Call::get(&url) })?;
    if answer.status() != 200 {
        return Err(client.refused(answer, what));
    }
    let said = text(&answer, header::CONTENT_TYPE)
        .map(|said| said.split(';').next().unwrap_or_default().trim().to_owned());
    let promised = text(&answer, CONTENT_DIGEST).and_then(|digest| digest.parse::<Digest>().ok());
    let bytes = read(client, answer.into_body(), MAX_MANIFEST, "manifest")?;
    if let Some(promised) = promised {
        check(client, &promised, &bytes)?;
    }
    Ok((bytes, said))
}

/// A small blob.
pub(super) fn document(
    client: &Client,
    of: &Descriptor,
    what: &'static str,
    most: u64,
) -> Result<Vec<u8>, Error> {
    if of.size > most {
        return Err(spec::Error::Long { what, size: of.size, most }.into());
    }
    let url = client.url("blobs", &of.digest.to_string());
    let answer = client.send(&Call::get(&url))?;
    if answer.status() != 200 {
        return Err(client.refused(answer, &format!("{what} {}", of.digest)));
    }
    let bytes = read(client, answer.into_body(), of.size, what)?;
    check(client, &of.digest, &bytes)?;
    Ok(bytes)
}

fn read(client: &Client, body: ureq::Body, most: u64, what: &'static str) -> Result<Vec<u8>, Error> {
    let read =
        bounded(body, most).map_err(|source| Error::Unreachable { registry: client.registry(), source })?;
    read.ok_or_else(|| client.protocol(&format!("its {what} has more than {most} bytes")))
}

fn check(client: &Client, wanted: &Digest, bytes: &[u8]) -> Result<(), Error> {
    let got = Digest::of(bytes);
    if got == *wanted {
        Ok(())
    } else {
        Err(Error::Digest { registry: client.registry(), wanted: *wanted, got })
    }
}
