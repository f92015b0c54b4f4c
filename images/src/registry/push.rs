//! `push`: an image to a registry.

use std::collections::BTreeSet;
use std::path::PathBuf;

use ureq::http::header;

use super::client::{Call, Client, Payload};
use super::error::Error;
use super::transfer::Transfer;
use super::vm::Artifact;
use super::{Options, Reference, upload};
use crate::digest::Digest;
use crate::manifest::{Blob, Source};
use crate::oci::spec::{self, Document, MAX_MANIFEST};
use crate::progress::Progress;
use crate::store::{Image, Store};

/// What is sent: blobs, then the manifest that names them.
struct Parcel {
    blobs: Vec<(Blob, PathBuf)>,
    manifest: Vec<u8>,
    media_type: String,
    /// Where the registry may have the blobs already.
    from: Option<String>,
}

/// Send `image` to `reference`, and say what the digest of its manifest is there. What came from a container is sent as it came, to the
/// byte; another image as an artifact that `pull` makes the same image of.
///
/// # Errors
/// If the registry does not answer or does not take it, or a file of the image is damaged.
pub fn push(
    store: &Store,
    image: &Image,
    reference: &Reference,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Digest, Error> {
    // Compressed disks live as long as this.
    let artifact;
    let parcel = match &image.manifest.source {
        Source::Oci { content, reference: from, .. } if !content.is_empty() => {
            kept(store, content, from.as_deref(), reference)?
        }
        _ => {
            artifact = Artifact::of(store, &image.id, progress)?;
            made(store, &image.id, &artifact)
        }
    };
    let digest = Digest::of(&parcel.manifest);
    if reference.digest().is_some_and(|wanted| *wanted != digest) {
        return Err(
            spec::Error::Wrong { what: "reference", why: format!("the image's digest is {digest}") }.into()
        );
    }
    progress.step(&format!("asking {}", reference.registry()));
    let others: Vec<&str> = parcel.from.iter().map(String::as_str).collect();
    let client = Client::new(reference, "pull,push", &others, options)?;
    progress.step(&format!("pushing {reference}"));
    let total = parcel.blobs.iter().fold(0_u64, |sum, (blob, _)| sum.saturating_add(blob.size));
    let transfer = Transfer::default();
    transfer.run(&parcel.blobs, total, progress, |(blob, path)| {
        upload::send(&client, blob, path, parcel.from.as_deref(), &transfer)
    })?;
    let target = if reference.name().is_none() { digest.to_string() } else { reference.tag().to_owned() };
    let url = client.url("manifests", &target);
    let headers = [(header::CONTENT_TYPE, parcel.media_type.clone())];
    let payload = Payload::Bytes(&parcel.manifest);
    let answer = client.send(&Call { method: "PUT", headers: &headers, payload, ..Call::get(&url) })?;
    if !answer.status().is_success() {
        return Err(client.refused(answer, &format!("manifest {target}")));
    }
    Ok(digest)
}

/// A container's image, as it came.
fn kept(store: &Store, content: &[Blob], from: Option<&str>, to: &Reference) -> Result<Parcel, Error> {
    let path = |blob: &Blob| store.blob_path(&blob.digest);
    let damaged = || spec::Error::Wrong {
        what: "image",
        why: "its manifest is missing: pull or import it again".to_owned(),
    };
    let (manifest, rest) = content.split_first().ok_or_else(damaged)?;
    if manifest.size > MAX_MANIFEST {
        return Err(damaged().into());
    }
    let bytes =
        std::fs::read(path(manifest)).map_err(Error::io(format!("read {}", path(manifest).display())))?;
    let Document::Manifest(read) = Document::parse(&bytes, None)? else {
        return Err(damaged().into());
    };
    let mut seen = BTreeSet::new();
    let rest = rest.iter().filter(|blob| seen.insert(blob.digest));
    let from = from.and_then(|from| from.parse::<Reference>().ok());
    let from = from.filter(|from| from.registry() == to.registry() && from.repository() != to.repository());
    Ok(Parcel {
        blobs: rest.map(|blob| (*blob, path(blob))).collect(),
        media_type: read.media_type().to_owned(),
        manifest: bytes,
        from: from.map(|from| from.repository().to_owned()),
    })
}

/// A VM's image.
fn made(store: &Store, id: &Digest, artifact: &Artifact) -> Parcel {
    let config = (Blob { digest: *id, size: artifact.config.len() as u64 }, store.manifest_path(id));
    let mut blobs = vec![config];
    blobs.extend(artifact.layers.iter().cloned());
    Parcel {
        blobs,
        manifest: artifact.manifest.clone(),
        media_type: spec::OCI_MANIFEST.to_owned(),
        from: None,
    }
}
