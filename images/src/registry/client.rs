//! [`Client`]: requests to one repository of one registry, with who asks, retries and redirects.
//!
//! Used by several threads at once. `Authorization` is sent to the registry's own origin only. Answers of a registry are hostile: what is
//! read of them is bounded where it is read.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;
use ureq::http::{Request, Response, header};
use ureq::{Agent, AsSendBody, Body, SendBody};

use super::address::{self, Origin};
use super::challenge::Challenge;
use super::credentials::{self, Credentials, Secret};
use super::error::Error;
use super::reference::Reference;
use super::{Options, tls};

/// How often something is tried that may work later.
pub const TRIES: u32 = 5;
/// The longest that a registry may ask us to wait.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// How many redirects are followed.
const MAX_REDIRECTS: u32 = 5;
/// The most bytes of a token's answer.
const MAX_TOKEN: u64 = 1 << 20;
/// The most bytes of an error that are read.
const MAX_ERROR: u64 = 16 << 10;

/// What a request carries.
#[derive(Clone, Copy)]
pub enum Payload<'a> {
    /// Nothing, not even a length.
    None,
    /// This.
    Bytes(&'a [u8]),
    /// So many bytes of a file from somewhere on.
    File {
        /// The file.
        path: &'a Path,
        /// Where they begin.
        from: u64,
        /// How many.
        len: u64,
        /// Told how many were read since it was last told.
        read: &'a (dyn Fn(u64) + Sync),
    },
}

/// A request.
pub struct Call<'a> {
    /// Such as `GET`.
    pub method: &'static str,
    /// Where to.
    pub url: &'a str,
    /// Headers but for those that every request has.
    pub headers: &'a [(header::HeaderName, String)],
    /// What it carries.
    pub payload: Payload<'a>,
    /// Whether it is tried again as it is if it fails.
    pub retried: bool,
}

impl<'a> Call<'a> {
    /// A plain GET.
    pub fn get(url: &'a str) -> Self {
        Self { method: "GET", url, headers: &[], payload: Payload::None, retried: true }
    }
}

/// Speaks to one repository.
pub struct Client {
    agent: Agent,
    origin: Origin,
    reference: Reference,
    scopes: Vec<String>,
    options: Options,
    /// Read when somebody first asks who we are.
    credentials: Mutex<Option<Credentials>>,
    /// The value of `Authorization`.
    authorization: Mutex<Option<Secret>>,
}

/// What a service of tokens answers.
#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

/// What a registry says of an error (distribution-spec, "Error Codes").
#[derive(Deserialize)]
struct Errors {
    errors: Vec<Said>,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Client {
    /// Of the repository that `reference` names, to do what `actions` says (`pull` or `pull,push`) and to read from `others`.
    ///
    /// # Errors
    /// If the certificates cannot be read, or a registry of this machine does not answer.
    pub fn new(
        reference: &Reference,
        actions: &str,
        others: &[&str],
        options: &Options,
    ) -> Result<Self, Error> {
        let mut scopes = vec![format!("repository:{}:{actions}", reference.repository())];
        scopes.extend(others.iter().map(|other| format!("repository:{other}:pull")));
        if let Some(variable) = options.proxies.wrong() {
            return Err(Error::Proxy { variable });
        }
        let secure = !options.plain_http;
        let mut client = Self {
            agent: agent(reference, options, secure)?,
            origin: Origin { secure, authority: reference.host().to_ascii_lowercase() },
            reference: reference.clone(),
            scopes,
            options: options.clone(),
            credentials: Mutex::new(None),
            authorization: Mutex::new(None),
        };
        if secure && reference.is_loopback() && !client.has_tls() {
            client.agent = agent(reference, options, false)?;
            client.origin.secure = false;
        }
        Ok(client)
    }

    /// Whether a registry of this machine speaks TLS, be it trusted or not.
    fn has_tls(&self) -> bool {
        let ping = Request::get(self.origin.url("/v2/")).body(SendBody::none());
        ping.is_ok_and(|ping| match self.run(ping) {
            Ok(_) => true,
            Err(error) => tls::is_untrusted(&error),
        })
    }

    /// A request as it is, through the proxy that is for it.
    fn run(&self, request: Request<impl AsSendBody>) -> Result<Response<Body>, ureq::Error> {
        let origin = Origin::of(&request.uri().to_string());
        let proxy = origin.and_then(|origin| self.options.proxies.through(&origin).cloned());
        self.agent.run(self.agent.configure_request(request).proxy(proxy).build())
    }

    /// The registry, for messages.
    pub fn registry(&self) -> String {
        self.reference.registry().to_owned()
    }

    /// The repository, for messages.
    pub fn repository(&self) -> &str {
        self.reference.repository()
    }

    /// The URL of something in the repository.
    pub fn url(&self, kind: &str, name: &str) -> String {
        self.origin.url(&format!("/v2/{}/{kind}/{name}", self.reference.repository()))
    }

    /// Where a `Location` leads that came in answer to a request to `url`.
    ///
    /// # Errors
    /// If there is none, or it leads from TLS to no TLS.
    pub fn location(&self, url: &str, answer: &Response<Body>) -> Result<String, Error> {
        let location = text(answer, header::LOCATION).and_then(|location| address::resolve(url, location));
        let location = location.ok_or_else(|| self.protocol("it leads to no usable Location"))?;
        match (Origin::of(url), Origin::of(&location)) {
            (Some(from), Some(to)) if from.secure && !to.secure => {
                Err(self.protocol("it leads from https to http, where anybody could listen"))
            }
            _ => Ok(location),
        }
    }

    /// That the registry breaks the protocol.
    pub fn protocol(&self, why: &str) -> Error {
        Error::Protocol { registry: self.registry(), why: why.to_owned() }
    }

    /// Ask, until there is an answer that is no redirect, no question who we are and no plea to come later. Its status may be anything else.
    ///
    /// # Errors
    /// If there is none.
    pub fn send(&self, call: &Call<'_>) -> Result<Response<Body>, Error> {
        let mut url = call.url.to_owned();
        let (mut redirects, mut asked) = (0_u32, 0_u32);
        let mut tried = if call.retried { 0_u32 } else { TRIES };
        loop {
            let answer = match self.once(call, &url) {
                Ok(answer) => answer,
                Err(error) if tried.saturating_add(1) < TRIES && error.may_pass() => {
                    log::debug!("{}: {}; trying again", address::shown(&url), error.cause);
                    self.wait(tried, None);
                    tried = tried.saturating_add(1);
                    continue;
                }
                Err(error) => return Err(error.of(host(&url))),
            };
            match answer.status().as_u16() {
                301 | 302 | 303 | 307 | 308 if matches!(call.method, "GET" | "HEAD") => {
                    redirects = redirects.saturating_add(1);
                    if redirects > MAX_REDIRECTS {
                        return Err(self.protocol(&format!("it redirects more than {MAX_REDIRECTS} times")));
                    }
                    url = self.location(&url, &answer)?;
                }
                401 if asked < 2 && self.is_own(&url) => {
                    asked = asked.saturating_add(1);
                    if !self.authorize(&answer)? {
                        return Ok(answer);
                    }
                }
                408 | 429 | 500 | 502..=504 if tried.saturating_add(1) < TRIES => {
                    self.wait(tried, text(&answer, header::RETRY_AFTER));
                    tried = tried.saturating_add(1);
                }
                _ => return Ok(answer),
            }
        }
    }

    /// What is wrong with an answer that is not the one that was hoped for. `what` was asked for.
    pub fn refused(&self, answer: Response<Body>, what: &str) -> Error {
        let (status, registry) = (answer.status().as_u16(), self.registry());
        match status {
            401 | 403 => {
                let known =
                    lock(&self.credentials).as_ref().is_some_and(|who| *who != Credentials::Anonymous);
                let who = if known { "you" } else { "anybody" };
                Error::Denied { registry, who, repository: self.reference.repository().to_owned() }
            }
            404 => Error::Missing { registry, what: what.to_owned() },
            _ => Error::Status { registry, status, what: what.to_owned(), said: said(answer) },
        }
    }

    fn is_own(&self, url: &str) -> bool {
        Origin::of(url)
            .is_some_and(|origin| origin == Origin::of(&self.origin.url("/")).unwrap_or(self.origin.clone()))
    }

    /// Wait before another try, as long as the registry asks for or twice as long as before.
    pub fn wait(&self, tried: u32, after: Option<&str>) {
        let asked = after.and_then(|after| after.trim().parse().ok()).map(Duration::from_secs);
        let own = self.options.patience.saturating_mul(1_u32.checked_shl(tried).unwrap_or(u32::MAX));
        thread::sleep(asked.unwrap_or(own).min(MAX_WAIT));
    }

    /// One request, one answer.
    fn once(&self, call: &Call<'_>, url: &str) -> Result<Response<Body>, Failed> {
        let mut request = Request::builder().method(call.method).uri(url);
        for (name, value) in call.headers {
            request = request.header(name, value);
        }
        if self.is_own(url)
            && let Some(value) = lock(&self.authorization).as_ref()
        {
            request = request.header(header::AUTHORIZATION, value.reveal());
        }
        let wrong = |_| Failed::for_good(io::Error::new(io::ErrorKind::InvalidInput, "its address is wrong"));
        match call.payload {
            Payload::None => Ok(self.run(request.body(()).map_err(wrong)?)?),
            Payload::Bytes(bytes) => Ok(self.run(request.body(bytes).map_err(wrong)?)?),
            Payload::File { path, from, len, read } => {
                let mut file = File::open(path).map_err(Failed::for_good)?;
                file.seek(SeekFrom::Start(from)).map_err(Failed::for_good)?;
                let mut body = Counted { inner: file.take(len), read };
                let request = request.header(header::CONTENT_LENGTH, len);
                Ok(self.run(request.body(SendBody::from_reader(&mut body)).map_err(wrong)?)?)
            }
        }
    }

    /// Find out what to answer to a registry that wants to know who asks. Whether there is anything.
    fn authorize(&self, answer: &Response<Body>) -> Result<bool, Error> {
        let headers = answer.headers().get_all(header::WWW_AUTHENTICATE);
        let challenges: Vec<_> = headers
            .iter()
            .take(8)
            .filter_map(|header| header.to_str().ok())
            .flat_map(Challenge::parse)
            .collect();
        let who = self.credentials()?;
        let bearer = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        let value = match (bearer.or(challenges.first()), &who) {
            (Some(Challenge::Bearer { .. }), Credentials::Token(token)) => {
                Some(format!("Bearer {}", token.reveal()))
            }
            (Some(Challenge::Bearer { realm, service, scope }), _) => {
                let token = self.token(realm, service.as_deref(), scope.as_deref(), &who)?;
                Some(format!("Bearer {}", token.reveal()))
            }
            (Some(Challenge::Basic), Credentials::Password { user, password }) => Some(basic(user, password)),
            _ => None,
        };
        let Some(value) = value else {
            return Ok(false);
        };
        *lock(&self.authorization) = Some(Secret::new(value));
        Ok(true)
    }

    fn credentials(&self) -> Result<Credentials, Error> {
        let mut known = lock(&self.credentials);
        if let Some(known) = known.as_ref() {
            return Ok(known.clone());
        }
        let found = match &self.options.config {
            Some(config) => credentials::find(config, self.reference.registry())?,
            None => Credentials::Anonymous,
        };
        *known = Some(found.clone());
        Ok(found)
    }

    /// A token from the service at `realm`.
    fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
        who: &Credentials,
    ) -> Result<Secret, Error> {
        let origin =
            Origin::of(realm).ok_or_else(|| self.protocol("its service of tokens has no usable address"))?;
        if self.origin.secure && !origin.secure && *who != Credentials::Anonymous {
            return Err(self
                .protocol("its service of tokens wants credentials over http, where anybody could listen"));
        }
        let mut scopes: Vec<&str> = self.scopes.iter().map(String::as_str).collect();
        scopes.extend(scope.filter(|scope| !self.scopes.iter().any(|known| known == scope)));
        let answer = match who {
            Credentials::Identity(identity) => {
                let form = [
                    ("grant_type", "refresh_token"),
                    ("client_id", "skiff"),
                    ("service", service.unwrap_or_default()),
                    ("scope", &scopes.join(" ")),
                    ("refresh_token", identity.reveal()),
                ];
                let form: Vec<String> =
                    form.iter().map(|(key, value)| format!("{key}={}", address::escape(value))).collect();
                let form = Secret::new(form.join("&"));
                self.ask_token("POST", realm, None, form.reveal().as_bytes())?
            }
            _ => {
                let mut url = realm.to_owned();
                for (key, value) in service
                    .map(|service| ("service", service))
                    .into_iter()
                    .chain(scopes.iter().map(|scope| ("scope", *scope)))
                {
                    url = address::with_query(&url, key, value);
                }
                let authorization = match who {
                    Credentials::Password { user, password } => Some(basic(user, password)),
                    _ => None,
                };
                self.ask_token("GET", &url, authorization, &[])?
            }
        };
        let token: Option<Token> = serde_json::from_slice(&answer).ok();
        let token = token.and_then(|token| token.token.or(token.access_token));
        let fits = |token: &String| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        token
            .filter(fits)
            .map(Secret::new)
            .ok_or_else(|| self.protocol("its service of tokens answers without a token"))
    }

    fn ask_token(
        &self,
        method: &'static str,
        url: &str,
        authorization: Option<String>,
        form: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let unreachable = |source| Error::Unreachable { registry: host(url), source };
        let mut tried = 0_u32;
        loop {
            let mut request = Request::builder().method(method).uri(url);
            if let Some(authorization) = &authorization {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            let bad = |_| self.protocol("its service of tokens has no usable address");
            let answer = if method == "GET" {
                self.run(request.body(()).map_err(bad)?)
            } else {
                let request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
                self.run(request.body(form).map_err(bad)?)
            };
            let again = tried.saturating_add(1) < TRIES;
            let answer = match answer.map_err(Failed::from) {
                Err(error) if again && error.may_pass() => {
                    self.wait(tried, None);
                    tried = tried.saturating_add(1);
                    continue;
                }
                answer => answer.map_err(|error| error.of(host(url)))?,
            };
            match answer.status().as_u16() {
                200 => {
                    return bounded(answer.into_body(), MAX_TOKEN)
                        .map_err(unreachable)?
                        .ok_or_else(|| self.protocol("its token has no end"));
                }
                429 | 500 | 502..=504 if again => self.wait(tried, text(&answer, header::RETRY_AFTER)),
                _ => return Err(self.refused(answer, "a token")),
            }
            tried = tried.saturating_add(1);
        }
    }
}

/// A request without an answer.
pub struct Failed {
    cause: io::Error,
    passes: bool,
    untrusted: bool,
}

impl Failed {
    fn for_good(cause: io::Error) -> Self {
        Self { cause, passes: false, untrusted: false }
    }

    /// For the one who asked `registry`.
    fn of(self, registry: String) -> Error {
        match self.untrusted {
            true => Error::Untrusted { registry, source: self.cause },
            false => Error::Unreachable { registry, source: self.cause },
        }
    }

    /// Whether it may work later.
    fn may_pass(&self) -> bool {
        self.passes
    }
}

impl From<ureq::Error> for Failed {
    /// Without addresses, which may have secrets in them.
    fn from(error: ureq::Error) -> Self {
        let untrusted = tls::is_untrusted(&error);
        let passes = !untrusted
            && matches!(error, ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed);
        let cause = match error {
            // What a peer's certificate is wrong by does not change.
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData && !untrusted => {
                return Self::for_good(error);
            }
            ureq::Error::Io(error) => error,
            ureq::Error::BadUri(_) | ureq::Error::RequireHttpsOnly(_) => {
                io::Error::other("its address is wrong")
            }
            other => io::Error::other(other.to_string()),
        };
        Self { cause, passes, untrusted }
    }
}

/// A reader that says how much was read.
struct Counted<'a, R> {
    inner: R,
    read: &'a (dyn Fn(u64) + Sync),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(into)?;
        (self.read)(got as u64);
        Ok(got)
    }
}

fn agent(reference: &Reference, options: &Options, secure: bool) -> Result<Agent, Error> {
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("skiff/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("")
        .timeout_resolve(Some(Duration::from_secs(20)))
        .timeout_connect(Some(Duration::from_secs(30)))
        // A registry hashes what it has got before it answers.
        .timeout_recv_response(Some(Duration::from_secs(300)))
        .timeout_per_read(Some(options.stall))
        .timeout_per_write(Some(options.stall));
    if secure {
        config = config.tls_config(tls::config(reference, &options.authorities, options.insecure)?);
    }
    Ok(Agent::new_with_config(config.build()))
}

/// All of a body, or nothing if it is longer than `most` bytes.
pub fn bounded(mut body: Body, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    body.as_reader().take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}

/// A header's text.
pub fn text(answer: &Response<Body>, name: header::HeaderName) -> Option<&str> {
    answer.headers().get(name)?.to_str().ok()
}

fn host(url: &str) -> String {
    Origin::of(url).map_or_else(|| "the registry".to_owned(), |origin| origin.authority)
}

fn basic(user: &str, password: &Secret) -> String {
    let both = format!("{user}:{}", password.reveal());
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(both))
}

/// What a registry says about an error, behind a colon; nothing if it says nothing.
fn said(answer: Response<Body>) -> String {
    let bytes = bounded(answer.into_body(), MAX_ERROR).ok().flatten().unwrap_or_default();
    let errors: Option<Errors> = serde_json::from_slice(&bytes).ok();
    let first = errors.and_then(|errors| errors.errors.into_iter().next());
    let Some(Said { code, message }) = first else {
        return String::new();
    };
    let text = if message.is_empty() { code } else { message };
    format!(": {}", text.chars().filter(|letter| !letter.is_control()).take(200).collect::<String>())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
