//! Against registries that lie.

use std::sync::Arc;

use images::digest::Digest;
use images::manifest::{Blob, Manifest, Source};
use images::registry::Error;
use serde_json::json;

use crate::made::{Container, vm};
use crate::real::Place;
use crate::stub::{Reply, Request, Stub};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What an honest registry with one image answers.
fn honest(container: &Container, request: &Request) -> Reply {
    if request.target.contains("/manifests/") {
        return Reply::new(200, &[("content-type", MANIFEST)], &container.manifest);
    }
    let found =
        container.blobs().into_iter().find(|blob| request.target.ends_with(&Digest::of(blob).to_string()));
    found.map_or_else(|| Reply::new(404, &[], b""), |blob| Reply::new(200, &[], blob))
}

/// Pull from a registry that answers so to what it wants to lie about, and honestly otherwise.
fn pull(
    lie: impl Fn(&Request, &Container, u16) -> Option<Reply> + Send + Sync + 'static,
) -> (Result<Digest, Error>, Stub, Place) {
    let container = Arc::new(Container::new(3000));
    let stub = Stub::start(move |request, port| {
        lie(request, &container, port).unwrap_or_else(|| honest(&container, request))
    });
    let place = Place::new();
    place.log_in(stub.port);
    let result = place.pull(&format!("localhost:{}/app:1", stub.port));
    (result, stub, place)
}

fn is_layer(request: &Request, container: &Container) -> bool {
    container.layers.iter().any(|layer| request.target.ends_with(&Digest::of(layer).to_string()))
}

/// A manifest with another list of layers.
fn with_layers(container: &Container, layers: serde_json::Value) -> Reply {
    let mut manifest: serde_json::Value = serde_json::from_slice(&container.manifest).unwrap();
    manifest["layers"] = layers;
    Reply::new(200, &[("content-type", MANIFEST)], manifest.to_string().as_bytes())
}

fn is_manifest(request: &Request) -> bool {
    request.target.contains("/manifests/")
}

#[test]
fn an_honest_one_is_believed() {
    pull(|_, _, _| None).0.unwrap();
}

#[test]
fn another_content_is_refused_and_not_kept() {
    let (result, _, place) = pull(|request, container, _| {
        is_layer(request, container).then(|| {
            let length = container
                .layers
                .iter()
                .find(|layer| request.target.ends_with(&Digest::of(layer).to_string()));
            Reply::new(200, &[], &vec![0; length.unwrap().len()])
        })
    });
    assert!(matches!(result, Err(Error::Digest { .. })), "{result:?}");
    for blob in Container::new(3000).content().iter().skip(2) {
        assert!(!place.store.has(blob).unwrap());
    }
}

#[test]
fn a_body_without_end_ends() {
    let head = |length: &str| format!("HTTP/1.1 200 x\r\n{length}\r\n").into_bytes();
    let (result, ..) =
        pull(move |request, container, _| is_layer(request, container).then(|| Reply::Endless(head(""))));
    assert!(matches!(result, Err(Error::Protocol { .. })), "{result:?}");
    let (result, ..) = pull(move |request, _, _| is_manifest(request).then(|| Reply::Endless(head(""))));
    assert!(matches!(result, Err(Error::Protocol { .. })), "{result:?}");
}

#[test]
fn a_wrong_length_is_refused() {
    let (result, ..) =
        pull(|request, container, _| is_layer(request, container).then(|| Reply::new(200, &[], b"short")));
    assert!(matches!(result, Err(Error::Protocol { .. })), "{result:?}");
    // Without a promise it just ends too soon, again and again.
    let (result, stub, _) = pull(|request, container, _| {
        is_layer(request, container).then(|| Reply::Raw(b"HTTP/1.1 200 x\r\n\r\nshort".to_vec()))
    });
    assert!(matches!(result, Err(Error::Unreachable { .. } | Error::Protocol { .. })), "{result:?}");
    assert!(stub.seen().len() < 100);
}

#[test]
fn another_part_than_was_asked_for_is_refused() {
    let (result, ..) = pull(|request, container, _| {
        is_layer(request, container).then(|| match request.header("range") {
            None => Reply::Raw(b"HTTP/1.1 200 x\r\n\r\nshort".to_vec()),
            Some(_) => Reply::new(206, &[("content-range", "bytes 0-9/10")], b"0123456789"),
        })
    });
    assert!(matches!(result, Err(Error::Protocol { .. })), "{result:?}");
}

#[test]
fn redirects_do_not_go_round_for_ever() {
    let (result, stub, _) = pull(|request, _, _| {
        is_manifest(request).then(|| Reply::new(307, &[("location", request.target.as_str())], b""))
    });
    assert!(matches!(result, Err(Error::Protocol { .. })), "{result:?}");
    assert!(stub.seen().len() < 20);
    for location in ["file:///etc/passwd", "http://user:password@localhost/", "gopher://x/", ""] {
        let (result, ..) = pull(move |request, _, _| {
            is_manifest(request).then(|| Reply::new(302, &[("location", location)], b""))
        });
        assert!(matches!(result, Err(Error::Protocol { .. })), "{location}: {result:?}");
    }
}

#[test]
fn another_host_is_not_told_who_asks() {
    let container = Container::new(3000);
    let other = Stub::start(move |request, _| honest(&container, request));
    let to = other.port;
    let (result, stub, _) = pull(move |request, container, _| {
        if request.header("authorization").is_none() {
            return Some(Reply::new(401, &[("www-authenticate", "Basic realm=x")], b""));
        }
        let location = format!("http://localhost:{to}{}", request.target);
        is_layer(request, container).then(|| Reply::new(307, &[("location", &location)], b""))
    });
    result.unwrap();
    assert!(stub.seen().iter().any(|request| request.header("authorization").is_some()));
    assert_eq!(other.seen().len(), 3);
    assert!(other.seen().iter().all(|request| request.header("authorization").is_none()));
}

#[test]
fn giant_manifests_and_layers_are_refused() {
    let giant = |request: &Request, _: &Container, _: u16| {
        is_manifest(request)
            .then(|| Reply::new(200, &[("content-type", MANIFEST)], &vec![b' '; (4 << 20) + 1]))
    };
    assert!(matches!(pull(giant).0, Err(Error::Protocol { .. })));
    let layer = |size: u64| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": Digest::of(b""), "size": size});
    let (result, stub, _) = pull(move |request, container, _| {
        is_manifest(request)
            .then(|| with_layers(container, json!([layer(1 << 60), layer(1 << 61), layer(1 << 62)])))
    });
    assert!(matches!(result, Err(Error::Store(_))), "{result:?}");
    assert!(stub.seen().iter().all(|request| !request.target.ends_with(&Digest::of(b"").to_string())));
    let (result, ..) = pull(move |request, container, _| {
        is_manifest(request).then(|| with_layers(container, vec![layer(1); 513].into()))
    });
    assert!(matches!(result, Err(Error::Document(_))), "{result:?}");
}

#[test]
fn digests_are_no_paths() {
    for digest in ["sha256:../../../../etc/passwd", "../x", "sha256:", "md5:d41d8cd98f00b204e9800998ecf8427e"]
    {
        let (result, ..) = pull(move |request, container, _| {
            let layer =
                json!([{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": 1}]);
            is_manifest(request).then(|| with_layers(container, layer))
        });
        assert!(matches!(result, Err(Error::Document(_))), "{digest}: {result:?}");
    }
}

#[test]
fn a_registry_in_trouble_is_asked_again() {
    let tries = std::sync::atomic::AtomicUsize::new(0);
    let (result, ..) = pull(move |request, _, _| {
        let first = tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 3;
        (first && is_manifest(request)).then(|| Reply::new(503, &[("retry-after", "0")], b""))
    });
    result.unwrap();
    let (result, stub, _) = pull(|_, _, _| {
        Some(Reply::new(500, &[], br#"{"errors":[{"code":"UNKNOWN","message":"no\u001b[31mway"}]}"#))
    });
    let said = result.unwrap_err().to_string();
    assert!(said.contains("500") && said.contains("no[31mway"), "{said}");
    assert_eq!(stub.seen().iter().filter(|request| is_manifest(request)).count(), 5);
}

#[test]
fn a_token_service_that_answers_nonsense_is_not_believed() {
    for answer in ["", "{}", r#"{"token":""}"#, r#"{"token":"a\r\nX-Evil: 1"}"#, "[1]"] {
        let (result, ..) = pull(move |request, _, port| {
            let challenge = format!(r#"Bearer realm="http://localhost:{port}/token""#);
            Some(match request.target.as_str() {
                token if token.starts_with("/token") => Reply::new(200, &[], answer.as_bytes()),
                _ => Reply::new(401, &[("www-authenticate", &challenge)], b""),
            })
        });
        assert!(matches!(result, Err(Error::Protocol { .. })), "{answer}: {result:?}");
    }
}

/// Pull a VM's image that a registry makes of this manifest, whose files are in `place`.
fn pull_artifact(place: &Place, manifest: &Manifest) -> (Result<Digest, Error>, Place) {
    let config = serde_json::to_vec(manifest).unwrap();
    let file = |blob: &Blob| json!({"mediaType": "application/vnd.skiff.image.file.v1", "digest": blob.digest, "size": blob.size});
    let artifact = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.skiff.image.config.v1+json", "digest": Digest::of(&config), "size": config.len()},
        "layers": manifest.blobs().iter().map(file).collect::<Vec<_>>(),
    });
    let mut files = vec![config];
    files.extend(
        manifest.blobs().iter().map(|blob| std::fs::read(place.store.blob_path(&blob.digest)).unwrap()),
    );
    let stub = Stub::start(move |request, _| {
        if is_manifest(request) {
            return Reply::new(200, &[("content-type", MANIFEST)], artifact.to_string().as_bytes());
        }
        let file = files.iter().find(|file| request.target.ends_with(&Digest::of(file).to_string()));
        file.map_or_else(|| Reply::new(404, &[], b""), |file| Reply::new(200, &[], file))
    });
    let to = Place::new();
    (to.pull(&format!("localhost:{}/app:1", stub.port)), to)
}

#[test]
fn no_image_can_pass_for_that_of_a_container_elsewhere() {
    let place = Place::new();
    let honest = vm(&place.store, None);
    pull_artifact(&place, &honest).0.unwrap();
    // A later pull of that container would be answered with this image, and nobody would have looked at what is in it.
    let container = Container::new(1000);
    let source = |content| Source::Oci { reference: None, digest: Digest::of(&container.manifest), content };
    let hostile = Manifest { source: source(vec![honest.kernel]), ..honest.clone() };
    let (result, to) = pull_artifact(&place, &hostile);
    assert!(matches!(result, Err(Error::Document(_))), "{result:?}");
    assert!(to.store.list().unwrap().0.is_empty());
}
