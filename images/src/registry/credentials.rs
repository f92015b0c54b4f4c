//! Who a user is to a registry, from where docker keeps it: `config.json`, and the programs that it names.
//!
//! Nothing here prints, logs or puts into an error what is secret.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use serde::{Deserialize, Deserializer};

use super::reference::DOCKER_HUB;

/// What docker calls its own registry in its configuration.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// The most bytes of a configuration, and of a program's answer.
const MAX_CONFIG: u64 = 1 << 20;
/// The user's name that says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Keep this.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for the peer that it is for.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Self(Option::<String>::deserialize(from)?.unwrap_or_default()))
    }
}

/// Who asks a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// Nobody in particular.
    Anonymous,
    /// A user.
    Password {
        /// Their name.
        user: String,
        /// Their password.
        password: Secret,
    },
    /// Whom a service of tokens knows by this (`identitytoken`).
    Identity(Secret),
    /// Whom the registry knows by this (`registrytoken`).
    Token(Secret),
}

/// Credentials cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be read.
    #[error("cannot read docker's configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The configuration is none. What serde says is left out: it may quote a secret.
    #[error("docker's configuration {path} is damaged in line {line}: correct it, or log in again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        line: usize,
    },
    /// What stands there for a registry is no name and password.
    #[error(
        "docker's configuration {path} has an auth for {registry} that is not the base64 of USER:PASSWORD: log in again"
    )]
    Auth {
        /// The file.
        path: PathBuf,
        /// The registry.
        registry: String,
    },
    /// A helper's name is none.
    #[error(
        "docker's configuration {path} names {helper:?} as a helper for credentials, which is no name of one"
    )]
    Name {
        /// The file.
        path: PathBuf,
        /// What it says.
        helper: String,
    },
    /// A helper cannot be run.
    #[error(
        "cannot run {program}, which docker's configuration names: install it, or log in again without it"
    )]
    Run {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A helper failed.
    #[error("{program} has no credentials for {registry}: {said}")]
    Helper {
        /// The program.
        program: String,
        /// What it was asked for.
        registry: String,
        /// Its first line.
        said: String,
    },
}

/// docker's configuration, as far as it is about credentials.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    #[serde(deserialize_with = "or_default")]
    auths: BTreeMap<String, Entry>,
    #[serde(deserialize_with = "or_default")]
    cred_helpers: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    creds_store: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Secret,
    #[serde(deserialize_with = "or_default")]
    username: String,
    password: Secret,
    identitytoken: Secret,
    registrytoken: Secret,
}

/// What a helper answers (docker-credential-helpers, "get").
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: Secret,
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// Where docker keeps its configuration: `$DOCKER_CONFIG`, or `.docker` at home.
#[must_use]
pub fn default_path() -> Option<PathBuf> {
    let given = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let dir = given("DOCKER_CONFIG").or_else(|| Some(given("HOME")?.join(".docker")))?;
    Some(dir.join("config.json"))
}

/// Who the user is to `registry`, by the configuration at `path`; nobody in particular if there is none.
///
/// # Errors
/// If the configuration is there but is none, or its helper fails.
pub fn find(path: &Path, registry: &str) -> Result<Credentials, Error> {
    let Some(config) = Config::load(path)? else {
        return Ok(Credentials::Anonymous);
    };
    let key = if registry == DOCKER_HUB { DOCKER_HUB_KEY } else { registry };
    if let Some((key, helper)) = config.cred_helpers.iter().find(|(key, _)| same(key, registry)) {
        return ask(path, helper, key);
    }
    if !config.creds_store.is_empty() {
        match ask(path, &config.creds_store, key) {
            Ok(Credentials::Anonymous) => {}
            answer => return answer,
        }
    }
    let entry = config.auths.get(key).or_else(|| {
        let matching = config.auths.iter().find(|(key, _)| same(key, registry));
        matching.map(|(_, entry)| entry)
    });
    entry.map_or(Ok(Credentials::Anonymous), |entry| entry.credentials(path, registry))
}

/// Whether a key of the configuration, which may be a URL, means `registry`.
fn same(key: &str, registry: &str) -> bool {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let host = key.split('/').next().unwrap_or_default();
    host.eq_ignore_ascii_case(registry) || registry == DOCKER_HUB && host == "index.docker.io"
}

impl Config {
    fn load(path: &Path) -> Result<Option<Self>, Error> {
        let failed = |source| Error::Read { path: path.to_owned(), source };
        let file = match File::open(path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            file => file.map_err(failed)?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_CONFIG).read_to_end(&mut bytes).map_err(failed)?;
        Self::parse(&bytes).map(Some).map_err(|line| Error::Damaged { path: path.to_owned(), line })
    }

    /// Or the line that is wrong.
    fn parse(bytes: &[u8]) -> Result<Self, usize> {
        serde_json::from_slice(bytes).map_err(|error| error.line())
    }
}

impl Entry {
    fn credentials(&self, path: &Path, registry: &str) -> Result<Credentials, Error> {
        if !self.identitytoken.is_empty() {
            return Ok(Credentials::Identity(self.identitytoken.clone()));
        }
        if !self.registrytoken.is_empty() {
            return Ok(Credentials::Token(self.registrytoken.clone()));
        }
        if self.auth.is_empty() {
            return Ok(match self.username.is_empty() {
                true => Credentials::Anonymous,
                false => {
                    Credentials::Password { user: self.username.clone(), password: self.password.clone() }
                }
            });
        }
        self.decoded().ok_or_else(|| Error::Auth { path: path.to_owned(), registry: registry.to_owned() })
    }

    fn decoded(&self) -> Option<Credentials> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(self.auth.reveal().trim()).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (user, password) = text.split_once(':')?;
        // docker pads what it writes with zeroes.
        let password = Secret::new(password.trim_end_matches('\0').to_owned());
        Some(Credentials::Password { user: user.to_owned(), password })
    }
}

/// Ask the program `docker-credential-HELPER` for `registry`.
fn ask(path: &Path, helper: &str, registry: &str) -> Result<Credentials, Error> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if helper.is_empty() || !helper.bytes().all(is_name) {
        return Err(Error::Name { path: path.to_owned(), helper: helper.chars().take(100).collect() });
    }
    let program = format!("docker-credential-{helper}");
    let (answer, succeeded) =
        run(&program, registry).map_err(|source| Error::Run { program: program.clone(), source })?;
    if succeeded {
        return match serde_json::from_slice(&answer) {
            Ok(Answer { username, secret }) if username == TOKEN_USER => Ok(Credentials::Identity(secret)),
            Ok(Answer { username, secret }) => Ok(Credentials::Password { user: username, password: secret }),
            Err(_) => Err(Error::Helper {
                program,
                registry: registry.to_owned(),
                said: "its answer is no JSON".to_owned(),
            }),
        };
    }
    let said = String::from_utf8_lossy(&answer);
    if said.contains("credentials not found") {
        return Ok(Credentials::Anonymous);
    }
    let line = said.lines().next().unwrap_or("it failed without a word");
    let said = line.chars().filter(|letter| !letter.is_control()).take(200).collect();
    Err(Error::Helper { program, registry: registry.to_owned(), said })
}

/// What the program says, and whether it succeeded.
fn run(program: &str, registry: &str) -> io::Result<(Vec<u8>, bool)> {
    let mut command = Command::new(program);
    let mut child = command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read what it is asked for answers all the same.
        let _ = stdin.write_all(registry.as_bytes());
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_CONFIG).read_to_end(&mut answer)?;
    }
    Ok((answer, child.wait()?.success()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(config: &str, registry: &str) -> Result<Credentials, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, config).unwrap();
        find(&path, registry)
    }

    fn password(user: &str, password: &str) -> Credentials {
        Credentials::Password { user: user.to_owned(), password: Secret::new(password.to_owned()) }
    }

    fn base64(text: &str) -> String {
        base64::engine::general_purpose::STANDARD.encode(text)
    }

    #[test]
    fn a_login_is_found_by_the_registrys_host() {
        let auth = base64("me:a:b");
        let config = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{auth}"}},"https://reg.example/v2/":{{"username":"u","password":"p"}},
            "tok.example:5000":{{"auth":"","identitytoken":"abc"}},"raw.example":{{"registrytoken":"def"}},"none.example":{{}}}},"HttpHeaders":{{}},"credHelpers":null}}"#
        );
        let secret = |text: &str| Secret::new(text.to_owned());
        for (registry, credentials) in [
            ("docker.io", password("me", "a:b")),
            ("reg.example", password("u", "p")),
            ("tok.example:5000", Credentials::Identity(secret("abc"))),
            ("raw.example", Credentials::Token(secret("def"))),
            ("none.example", Credentials::Anonymous),
            // Another port is another registry.
            ("tok.example", Credentials::Anonymous),
        ] {
            assert_eq!(found(&config, registry).unwrap(), credentials, "{registry}");
        }
        assert_eq!(find(Path::new("/nonexistent/config.json"), "a.example").unwrap(), Credentials::Anonymous);
    }

    #[test]
    fn errors_say_where_and_nothing_secret() {
        let auth = base64("hidden");
        let error =
            found(&format!(r#"{{"auths":{{"a.example":{{"auth":"{auth}"}}}}}}"#), "a.example").unwrap_err();
        assert!(matches!(&error, Error::Auth { .. }) && !format!("{error:?}{error}").contains(&auth));
        let error = found("{\n\"auths\":{\"a.example\":{\"auth\":\"hidden\"", "a.example").unwrap_err();
        assert!(
            matches!(&error, Error::Damaged { line: 2, .. })
                && !format!("{error:?}{error}").contains("hidden")
        );
        let error = found(r#"{"auths":{"a.example":{"password":["hidden"]}}}"#, "a.example").unwrap_err();
        assert!(!format!("{error:?}").contains("hidden"));
        assert!(!format!("{:?}", password("me", "hidden")).contains("hidden"));
        assert!(matches!(found(r#"{"credsStore":"../x"}"#, "a.example"), Err(Error::Name { .. })));
        assert!(matches!(found(r#"{"credsStore":"there-is-none"}"#, "a.example"), Err(Error::Run { .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fall_over(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Config::parse(&bytes);
        }

        #[test]
        fn any_name_and_password_come_through(user in "[^:\\x00]{1,20}", secret in "[^\\x00]{0,20}") {
            let entry = Entry { auth: Secret::new(base64(&format!("{user}:{secret}"))), ..Entry::default() };
            prop_assert_eq!(entry.credentials(Path::new(""), "").unwrap(), password(&user, &secret));
        }

        #[test]
        fn any_auth_is_read_or_refused(auth: String) {
            let entry = Entry { auth: Secret::new(auth), ..Entry::default() };
            let _ = entry.credentials(Path::new(""), "");
        }
    }
}
