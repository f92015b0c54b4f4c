//! Registries with an authority of their own, and through proxies.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use images::digest::Digest;
use images::registry::{self, Authorities, Error, Options, Proxies};
use serde_json::json;

use crate::made::{Container, Paper};
use crate::real::{Place, reference};
use crate::server::Server;
use crate::stub::{Reply, Stub};

/// A registry whose certificate is of an authority that nobody knows, for `localhost` and `reg.test`. None without the programs.
struct Private {
    server: Server,
    authority: PathBuf,
    _dir: tempfile::TempDir,
}

impl Private {
    fn start(login: bool) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(
            path("names"),
            "subjectAltName=DNS:localhost,DNS:reg.test,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n",
        )
        .unwrap();
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        for words in [
            format!("req -x509 {key} -keyout authority.key -out authority.crt -days 3650 -subj /CN=authority"),
            format!("req {key} -keyout server.key -out server.csr -subj /CN=server"),
            "x509 -req -in server.csr -CA authority.crt -CAkey authority.key -CAcreateserial -out server.crt -days 3650 -extfile names".to_owned(),
        ] {
            let Ok(output) = Command::new("openssl").args(words.split(' ')).current_dir(dir.path()).output() else {
                eprintln!("skipped: there is no openssl");
                return None;
            };
            assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let server = Server::with(login, Some((&path("server.key"), &path("server.crt"))))?;
        Some(Self { server, authority: path("authority.crt"), _dir: dir })
    }

    fn name(&self, host: &str) -> String {
        format!("{host}:{}/app:1", self.server.port)
    }
}

fn pull(place: &Place, name: &str, options: &Options) -> Result<Digest, Error> {
    registry::pull(&place.store, &reference(name), options, false, &mut Paper, &mut ())
}

fn trusting(place: &Place, file: &Path) -> Options {
    let authorities =
        Authorities { file: Some(file.to_owned()), registries: place.dir.path().join("certs.d") };
    Options { authorities, proxies: Proxies::default(), ..place.options() }
}

#[test]
fn an_authority_of_its_own_is_trusted_if_somebody_says_so() {
    let Some(private) = Private::start(false) else { return };
    let (place, image) = Place::with(&Container::new(1000));
    let name = private.name("localhost");
    let nobody = place.dir.path().join("nobody.crt");
    fs::write(&nobody, "").unwrap();
    let options = trusting(&place, &nobody);
    // Not even on this machine is it spoken to without TLS then.
    let error = pull(&place, &name, &options).unwrap_err();
    assert!(matches!(&error, Error::Untrusted { .. }), "{error:?}");
    assert!(error.to_string().contains("/etc/docker/certs.d/localhost:"), "{error}");
    let all = trusting(&place, &private.authority);
    registry::push(&place.store, &image, &reference(&name), &all, &mut ()).unwrap();
    pull(&Place::new(), &name, &all).unwrap();
    let own = options.authorities.registries.join(format!("localhost:{}", private.server.port));
    fs::create_dir_all(&own).unwrap();
    fs::copy(&private.authority, own.join("ca.crt")).unwrap();
    pull(&Place::new(), &name, &options).unwrap();
    // It is that registry's alone, and says nothing about another name of it.
    let error = pull(&Place::new(), &private.name("127.0.0.1"), &options).unwrap_err();
    assert!(matches!(error, Error::Untrusted { .. }), "{error:?}");
    let anybody = Options { insecure: true, ..trusting(&place, &nobody) };
    pull(&Place::new(), &name, &anybody).unwrap();
}

/// A proxy that connects to this port, whoever was asked for, and what was asked for.
fn proxy(to: u16) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let log = Arc::clone(&log);
            thread::spawn(move || {
                let mut lines = BufReader::new(client.try_clone()?).lines();
                log.lock().unwrap().push(lines.next().unwrap_or_else(|| Ok(String::new()))?);
                while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
                (&client).write_all(b"HTTP/1.1 200 x\r\n\r\n")?;
                let server = TcpStream::connect(("127.0.0.1", to))?;
                let (mut from, mut into) = (server.try_clone()?, client.try_clone()?);
                thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut into);
                    let _ = into.shutdown(std::net::Shutdown::Both);
                });
                io::copy(&mut &client, &mut &server)
            });
        }
    });
    (port, asked)
}

#[test]
fn a_registry_behind_a_proxy_is_reached_through_it() {
    let Some(private) = Private::start(true) else { return };
    let (port, asked) = proxy(private.server.port);
    let (place, image) = Place::with(&Container::new(1000));
    let login = json!({"auths": {format!("reg.test:{}", private.server.port): {"username": "me", "password": "secret"}}});
    fs::write(place.dir.path().join("config.json"), login.to_string()).unwrap();
    let with = |without: &str| {
        let look = |name: &str| match name {
            "HTTPS_PROXY" => Some(format!("http://127.0.0.1:{port}")),
            "NO_PROXY" => Some(without.to_owned()),
            _ => None,
        };
        Options { proxies: Proxies::of(&look), ..trusting(&place, &private.authority) }
    };
    let name = private.name("reg.test");
    registry::push(&place.store, &image, &reference(&name), &with("other.test"), &mut ()).unwrap();
    let to = Place::new();
    let id = pull(&to, &name, &Options { config: place.options().config, ..with("other.test") }).unwrap();
    assert_eq!(crate::made::content(&to.store, &id), Container::new(1000).content());
    let wanted = format!("CONNECT reg.test:{} HTTP/1.1", private.server.port);
    let seen = || asked.lock().unwrap().clone();
    assert!(!seen().is_empty() && seen().iter().all(|line| *line == wanted), "{:?}", seen());
    // No such host is known here: without the proxy nobody is there.
    let before = seen().len();
    let error = pull(&Place::new(), &name, &with("test")).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert_eq!(seen().len(), before);
}

#[test]
fn an_identity_token_is_given_to_the_service_of_tokens_alone() {
    let container = Arc::new(Container::new(1000));
    let stub = Stub::start(move |request, port| {
        if request.target == "/token" {
            let form = String::from_utf8_lossy(&request.body).into_owned();
            let right = request.method == "POST"
                && [
                    "grant_type=refresh_token",
                    "refresh_token=abc%2F%2B",
                    "service=here",
                    "scope=repository%3Aapp%3Apull",
                ]
                .iter()
                .all(|part| form.split('&').any(|field| field == *part));
            let status = if right { 200 } else { 401 };
            return Reply::new(status, &[], br#"{"access_token":"good"}"#);
        }
        if request.header("authorization") != Some("Bearer good") {
            let challenge = format!("Bearer realm=\"http://localhost:{port}/token\",service=\"here\"");
            return Reply::new(401, &[("www-authenticate", &challenge)], b"");
        }
        if request.target.contains("/manifests/") {
            let kind = [("content-type", "application/vnd.oci.image.manifest.v1+json")];
            return Reply::new(200, &kind, &container.manifest);
        }
        let blobs = container.blobs();
        let blob = blobs.iter().find(|blob| request.target.ends_with(&Digest::of(blob).to_string()));
        blob.map_or_else(|| Reply::new(404, &[], b""), |blob| Reply::new(200, &[], blob))
    });
    let place = Place::new();
    let host = format!("localhost:{}", stub.port);
    let config = json!({"auths": {&host: {"auth": "", "identitytoken": "abc/+"}}});
    fs::write(place.dir.path().join("config.json"), config.to_string()).unwrap();
    place.pull(&format!("{host}/app:1")).unwrap();
    for request in stub.seen().iter().filter(|request| request.target != "/token") {
        assert!(request.body.is_empty() && !format!("{:?}", request.headers).contains("abc"), "{request:?}");
    }
}
