//! `docker-registry` on a port of its own, as long as a test needs it.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// `me:secret`, as `htpasswd -B` writes it.
const LOGIN: &str = "me:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";

/// A registry. Gone when dropped.
pub struct Server {
    child: Child,
    pub port: u16,
    _dir: TempDir,
}

impl Server {
    /// Start one, which wants to know who asks if `login` is set. None if the program is not installed.
    pub fn start(login: bool) -> Option<Self> {
        Self::with(login, None)
    }

    /// The same with TLS, by the key and the certificate in these files.
    pub fn with(login: bool, tls: Option<(&Path, &Path)>) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let root = dir.path().display();
        let tls = tls.map_or_else(String::new, |(key, certificate)| {
            format!(", tls: {{key: {}, certificate: {}}}", key.display(), certificate.display())
        });
        let mut config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {root}/data}}}}\nhttp: {{addr: '127.0.0.1:{port}'{tls}}}\n"
        );
        if login {
            fs::write(dir.path().join("htpasswd"), format!("{LOGIN}\n")).unwrap();
            config.push_str(&format!("auth: {{htpasswd: {{realm: test, path: {root}/htpasswd}}}}\n"));
        }
        let path = dir.path().join("config.yml");
        fs::write(&path, config).unwrap();
        let mut command = Command::new("docker-registry");
        let child = command.arg("serve").arg(path).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let Ok(child) = child else {
            eprintln!("skipped: there is no docker-registry; cargo xtask setup installs it");
            return None;
        };
        let server = Self { child, port, _dir: dir };
        let end = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < end, "docker-registry does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Some(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
