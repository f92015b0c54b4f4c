//! Against `docker-registry`.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use images::digest::Digest;
use images::oci;
use images::registry::{self, Error, Options, Reference};
use images::store::{Image, Store};
use tempfile::TempDir;

use crate::made::{Container, Paper, content, vm};
use crate::server::Server;
use crate::stub::{Reply, Stub};

/// What a login to `localhost:PORT` leaves in docker's configuration: `me:secret`.
const AUTH: &str = "bWU6c2VjcmV0";

/// A place for a store and what belongs to it.
pub struct Place {
    pub store: Store,
    pub dir: TempDir,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { store: Store::open(dir.path().join("images")), dir }
    }

    /// The store with `container` in it.
    pub fn with(container: &Container) -> (Self, Image) {
        let place = Self::new();
        let layout = place.dir.path().join("layout");
        container.layout(&layout);
        let manifest = oci::import(&place.store, &layout, None, &mut Paper, &mut ()).unwrap();
        let id = place.store.put(&manifest).unwrap();
        let image = place.store.resolve(&id.to_string()).unwrap();
        (place, image)
    }

    /// Options that wait for nothing, without credentials.
    pub fn options(&self) -> Options {
        let config = self.dir.path().join("config.json");
        Options {
            config: Some(config),
            patience: Duration::from_millis(1),
            stall: Duration::from_secs(20),
            ..Options::default()
        }
    }

    /// Log in to the registry on this port.
    pub fn log_in(&self, port: u16) {
        let config = format!(r#"{{"auths":{{"localhost:{port}":{{"auth":"{AUTH}"}}}}}}"#);
        fs::write(self.dir.path().join("config.json"), config).unwrap();
    }

    pub fn pull(&self, text: &str) -> Result<Digest, Error> {
        registry::pull(&self.store, &reference(text), &self.options(), false, &mut Paper, &mut ())
    }

    pub fn push(&self, image: &Image, text: &str) -> Result<Digest, Error> {
        registry::push(&self.store, image, &reference(text), &self.options(), &mut ())
    }
}

pub fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

#[test]
fn a_containers_image_comes_back_to_the_byte() {
    let Some(server) = Server::start(false) else { return };
    let container = Container::new(300_000);
    let (from, image) = Place::with(&container);
    let name = format!("localhost:{}/team/app:1", server.port);
    assert_eq!(from.push(&image, &name).unwrap(), Digest::of(&container.manifest));

    let to = Place::new();
    let id = to.pull(&name).unwrap();
    assert_eq!(content(&to.store, &id), container.content());
    let defaults = to.store.get(&id).unwrap().defaults;
    assert_eq!(
        (defaults.entrypoint, defaults.command),
        (vec!["/bin/hello".to_owned()], vec!["world".to_owned()])
    );
    assert_eq!(
        (defaults.user.as_str(), defaults.cwd.as_str(), defaults.ports),
        ("1000", "/srv", vec!["80/tcp".to_owned()])
    );
    // What is there is not made again; by its digest it is the same.
    assert_eq!(to.pull(&name).unwrap(), id);
    let pinned = format!("localhost:{}/team/app@{}", server.port, Digest::of(&container.manifest));
    assert_eq!(to.pull(&pinned).unwrap(), id);
}

#[test]
fn blobs_of_another_repository_are_not_sent_again() {
    let Some(server) = Server::start(false) else { return };
    let behind = server.port;
    let stub = Stub::start(move |_, _| Reply::Forward(behind, usize::MAX));
    let container = Container::new(1000);
    let (from, image) = Place::with(&container);
    from.push(&image, &format!("localhost:{}/app:1", stub.port)).unwrap();
    let to = Place::new();
    let id = to.pull(&format!("localhost:{}/app:1", stub.port)).unwrap();
    let image = to.store.resolve(&id.to_string()).unwrap();
    let sent = || stub.seen().iter().filter(|request| request.method == "PUT").count();
    let before = sent();
    let digest = to.push(&image, &format!("localhost:{}/other/app:2", stub.port)).unwrap();
    assert_eq!(digest, Digest::of(&container.manifest));
    assert_eq!(sent(), before + 1, "only the manifest is sent");
    let last = Place::new();
    let id = last.pull(&format!("localhost:{behind}/other/app:2")).unwrap();
    assert_eq!(content(&last.store, &id), container.content());
}

#[test]
fn what_is_not_there_is_said() {
    let Some(server) = Server::start(false) else { return };
    let error = Place::new().pull(&format!("localhost:{}/none:1", server.port)).unwrap_err();
    assert!(matches!(error, Error::Missing { .. }), "{error}");
}

#[test]
fn a_vms_image_keeps_its_id() {
    let Some(server) = Server::start(false) else { return };
    let (from, to) = (Place::new(), Place::new());
    let id = from.store.put(&vm(&from.store, None)).unwrap();
    let image = from.store.resolve(&id.to_string()).unwrap();
    let name = format!("localhost:{}/paper:1", server.port);
    from.push(&image, &name).unwrap();
    assert_eq!(to.pull(&name).unwrap(), id);
    assert_eq!(to.store.get(&id).unwrap(), image.manifest);
    to.store.verify(&image.manifest, &mut |_, _| {}).unwrap();
}

#[test]
fn a_disk_that_stands_on_a_file_of_the_host_is_refused() {
    let Some(server) = Server::start(false) else { return };
    let (from, to) = (Place::new(), Place::new());
    let id = from.store.put(&vm(&from.store, Some("/etc/shadow"))).unwrap();
    let image = from.store.resolve(&id.to_string()).unwrap();
    let name = format!("localhost:{}/paper:1", server.port);
    from.push(&image, &name).unwrap();
    let error = to.pull(&name).unwrap_err();
    assert!(error.to_string().contains("/etc/shadow"), "{error}");
    assert!(to.store.ids().unwrap().is_empty());
}

#[test]
fn a_registry_with_a_login_wants_it() {
    let Some(server) = Server::start(true) else { return };
    let (place, image) = Place::with(&Container::new(1000));
    let name = format!("localhost:{}/app:1", server.port);
    let error = place.push(&image, &name).unwrap_err();
    assert!(matches!(error, Error::Denied { who: "anybody", .. }), "{error}");
    place.log_in(server.port);
    place.push(&image, &name).unwrap();
    let other = Place::new();
    assert!(matches!(other.pull(&name), Err(Error::Denied { .. })));
    other.log_in(server.port);
    other.pull(&name).unwrap();
}

#[test]
fn a_token_is_fetched_and_used() {
    let Some(server) = Server::start(false) else { return };
    let behind = server.port;
    let stub = Stub::start(move |request, port| {
        let basic = format!("Basic {AUTH}");
        if request.target.starts_with("/token?") {
            let known = request.header("authorization") == Some(basic.as_str());
            return if known {
                Reply::new(200, &[], br#"{"token":"abc"}"#)
            } else {
                Reply::new(401, &[], b"")
            };
        }
        match request.header("authorization") {
            Some("Bearer abc") => Reply::Forward(behind, usize::MAX),
            _ => {
                let challenge =
                    format!(r#"Bearer realm="http://localhost:{port}/token",service="reg",scope="x""#);
                Reply::new(401, &[("www-authenticate", challenge.as_str())], b"")
            }
        }
    });
    let (place, image) = Place::with(&Container::new(1000));
    let name = format!("localhost:{}/app:1", stub.port);
    assert!(place.push(&image, &name).is_err());
    place.log_in(stub.port);
    // docker-registry's Location names the host that the client asked for.
    place.push(&image, &name).unwrap();
    let other = Place::new();
    other.log_in(stub.port);
    other.pull(&name).unwrap();
    let asked = stub.seen().into_iter().find(|request| request.target.starts_with("/token?")).unwrap();
    assert!(asked.target.contains("service=reg"), "{}", asked.target);
    assert!(asked.target.contains("scope=repository%3Aapp%3Apull%2Cpush"), "{}", asked.target);
}

#[test]
fn what_was_cut_off_is_taken_up_again() {
    let Some(server) = Server::start(false) else { return };
    let container = Container::new(500_000);
    let (from, image) = Place::with(&container);
    from.push(&image, &format!("localhost:{}/app:1", server.port)).unwrap();
    let (behind, cuts) = (server.port, AtomicUsize::new(0));
    let stub = Stub::start(move |request, _| {
        let is_layer = request.method == "GET" && request.target.contains("/blobs/");
        let cut = is_layer && request.header("range").is_none() && cuts.fetch_add(1, Ordering::Relaxed) > 0;
        Reply::Forward(behind, if cut { 200_000 } else { usize::MAX })
    });
    let to = Place::new();
    let id = to.pull(&format!("localhost:{}/app:1", stub.port)).unwrap();
    assert_eq!(content(&to.store, &id), container.content());
    let ranges = stub.seen().iter().filter(|request| request.header("range").is_some()).count();
    assert!(ranges >= 1, "nothing was resumed");
}

#[test]
fn a_later_pull_goes_on_where_an_earlier_one_ended() {
    let Some(server) = Server::start(false) else { return };
    let container = Container::new(500_000);
    let (from, image) = Place::with(&container);
    from.push(&image, &format!("localhost:{}/app:1", server.port)).unwrap();
    let behind = server.port;
    let config = Digest::of(&container.config).to_string();
    let broken = Stub::start(move |request, _| {
        let is_layer = request.target.contains("/blobs/") && !request.target.contains(&config);
        match (is_layer, request.header("range")) {
            (true, None) => Reply::Forward(behind, 200_000),
            (true, Some(_)) => Reply::Raw(Vec::new()),
            _ => Reply::Forward(behind, usize::MAX),
        }
    });
    let to = Place::new();
    let error = to.pull(&format!("localhost:{}/app:1", broken.port)).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    let honest = Stub::start(move |_, _| Reply::Forward(behind, usize::MAX));
    let id = to.pull(&format!("localhost:{}/app:1", honest.port)).unwrap();
    assert_eq!(content(&to.store, &id), container.content());
    let resumed = honest.seen().iter().any(|request| request.header("range") == Some("bytes=200000-"));
    assert!(resumed, "{:?}", honest.seen());
}

#[test]
fn damage_in_what_was_fetched_before_is_noticed() {
    let Some(server) = Server::start(false) else { return };
    let container = Container::new(50_000);
    let (from, image) = Place::with(&container);
    let name = format!("localhost:{}/app:1", server.port);
    from.push(&image, &name).unwrap();
    let to = Place::new();
    for blob in container.content() {
        let partial = to.store.partial(&blob.digest.to_string()).unwrap();
        fs::write(partial.path(), b"something else").unwrap();
    }
    let id = to.pull(&name).unwrap();
    assert_eq!(content(&to.store, &id), container.content());
}

#[test]
fn a_proxy_that_takes_no_large_bodies_gets_chunks() {
    let Some(server) = Server::start(false) else { return };
    let container = Container::new(5 << 20);
    let (place, image) = Place::with(&container);
    let (behind, failures) = (server.port, AtomicUsize::new(0));
    let stub = Stub::start(move |request, _| {
        if request.method == "PUT" && request.body.len() > 4 << 20 {
            return Reply::new(413, &[], b"");
        }
        // One chunk is lost on its way.
        if request.method == "PATCH" && failures.fetch_add(1, Ordering::Relaxed) == 1 {
            return Reply::new(502, &[], b"");
        }
        Reply::Forward(behind, usize::MAX)
    });
    let name = format!("localhost:{}/app:1", stub.port);
    assert_eq!(place.push(&image, &name).unwrap(), Digest::of(&container.manifest));
    let chunks = stub.seen().iter().filter(|request| request.method == "PATCH").count();
    assert!(chunks >= 7, "{chunks} chunks");
    let to = Place::new();
    let id = to.pull(&format!("localhost:{behind}/app:1")).unwrap();
    assert_eq!(content(&to.store, &id), container.content());
}

#[test]
fn two_pulls_at_once_share_the_work() {
    let Some(server) = Server::start(false) else { return };
    let container = Container::new(2 << 20);
    let (from, image) = Place::with(&container);
    let name = format!("localhost:{}/app:1", server.port);
    from.push(&image, &name).unwrap();
    let to = Place::new();
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4).map(|_| scope.spawn(|| to.pull(&name))).collect();
        for pull in pulls {
            let id = pull.join().unwrap().unwrap();
            assert_eq!(content(&to.store, &id), container.content());
        }
    });
}
