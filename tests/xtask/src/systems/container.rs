//! A container's image, made by umoci of a busybox: it goes to a registry as one user's, and comes from there as another's.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Scratch, Systems, text};
use crate::debian::busybox;
use crate::{paths, tool};

/// What the image is called that tests run.
pub const NAME: &str = "container:1";

/// What it runs, with what it was started as and how.
const ENTRY: &str = "#!/bin/sh
echo \"words=$* user=$(id -u):$(id -g) at=$(pwd) colour=$COLOUR\"
exec \"$@\"
";
const FILES: [(&str, &str); 5] = [
    ("entry", ENTRY),
    ("etc/os-release", "ID=tiny\nPRETTY_NAME=\"Tiny system of tests\"\n"),
    ("etc/passwd", "root:x:0:0:root:/:/bin/sh\napp:x:1000:1000:app:/srv:/bin/sh\n"),
    ("etc/machine-id", ""),
    ("etc/group", "root:x:0:\napp:x:1000:\n"),
];
/// What umoci writes into its configuration.
const CONFIG: [(&str, &str); 6] = [
    ("--config.entrypoint", "/entry"),
    ("--config.cmd", "sh"),
    ("--config.cmd", "-c"),
    ("--config.cmd", "exit 23"),
    ("--config.env", "COLOUR=blue"),
    ("--config.workingdir", "/srv"),
];

/// Makes it, sends it, fetches it.
pub fn make(systems: &Systems) -> Result<()> {
    let work = systems.scratch("container")?;
    let layout = layout(&work)?;
    let sender = work.join("sender");
    let import = ["image", "import", text(&layout)?, "made:1", "--image", "app"];
    systems.run_in(&sender, import)?;
    let registry = Registry::start(&work)?;
    let place = format!("127.0.0.1:{}/tests/made:1", registry.port);
    systems.run_in(&sender, ["image", "push", "made:1", &place])?;
    // The kernel is another's here: that of an image which was built.
    systems.run(["image", "pull", "--tag", NAME, "--kernel-from", "debian:12", &place]).map(drop)
}

fn layout(work: &Scratch) -> Result<PathBuf> {
    let (layout, bundle) = (work.join("layout"), work.join("bundle"));
    let image = format!("{}:app", text(&layout)?);
    let umoci = |words: &[&str]| tool::capture(Command::new("umoci").args(words)).map(drop);
    umoci(&["init", "--layout", text(&layout)?])?;
    umoci(&["new", "--image", &image])?;
    umoci(&["unpack", "--rootless", "--image", &image, text(&bundle)?])?;
    fill(&bundle.join("rootfs"))?;
    umoci(&["repack", "--image", &image, text(&bundle)?])?;
    let mut words = vec!["config", "--image", &image, "--config.user", "1000:1000"];
    words.extend(CONFIG.iter().flat_map(|(key, value)| [*key, *value]));
    umoci(&words)?;
    Ok(layout)
}

/// Puts in what a guest needs that is busybox alone.
pub fn fill(root: &Path) -> Result<()> {
    for dir in ["bin", "dev", "etc", "proc", "root", "run", "srv", "sys", "tmp"] {
        paths::make_dir(&root.join(dir))?;
    }
    let busybox = busybox::ensure()?;
    fs::copy(&busybox, root.join("bin/busybox")).context("cannot copy busybox")?;
    let applets = tool::capture(Command::new(&busybox).arg("--list"))?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))
            .with_context(|| format!("cannot make a link for {applet}"))?;
    }
    for (path, content) in FILES {
        paths::write_whole(&root.join(path), content.as_bytes())?;
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(root.join("entry"), mode).context("cannot make the entrypoint a program")
}

/// Debian's `docker-registry` on a port of its own. Gone when this is.
struct Registry {
    child: Child,
    port: u16,
}

impl Registry {
    fn start(work: &Scratch) -> Result<Self> {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.context("there is no free port")?.port();
        let (config, log) = (work.join("registry.yml"), work.join("registry.log"));
        let data = work.join("registry");
        let lines = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
            text(&data)?
        );
        paths::write_whole(&config, lines.as_bytes())?;
        let log_file = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log_file);
        let child = command.spawn().context("cannot run docker-registry; `cargo xtask setup` installs it")?;
        let mut registry = Self { child, port };
        let end = Instant::now() + Duration::from_secs(120);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = registry.child.try_wait().context("waiting for docker-registry")?.is_some();
            if ended || Instant::now() > end {
                bail!("docker-registry does not listen: {}", fs::read_to_string(&log).unwrap_or_default());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
