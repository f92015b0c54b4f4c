//! What there is to know of the host, asked and not judged.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow};
use images::debian::KEYRING;
use images::rootless;
use rustix::process::{Resource, getrlimit};
use vmm::host_check::{self, KVM_DEVICE, KvmError, KvmFacts};

use crate::store::state_dir;

/// The node through which taps are opened.
pub(super) const TUN: &str = "/dev/net/tun";

/// All of it.
pub(super) struct Host {
    /// The text of `/proc/cpuinfo`.
    pub(super) cpuinfo: String,
    /// The module of software-assisted KVM is loaded.
    pub(super) kvm_pvm: bool,
    pub(super) kvm: Result<KvmFacts, KvmError>,
    /// The group that may use KVM, if one may.
    pub(super) kvm_group: Option<String>,
    /// The text of `/proc/meminfo`.
    pub(super) meminfo: String,
    /// Where VMs are kept.
    pub(super) state: Result<PathBuf>,
    /// How many files may be open, now and at most; `None` is without a limit.
    pub(super) files: (Option<u64>, Option<u64>),
    /// How many bytes may be locked in memory.
    pub(super) locked: (Option<u64>, Option<u64>),
    pub(super) io_uring: io::Result<()>,
    /// The sysctl `kernel.io_uring_disabled`, if there is one.
    pub(super) io_uring_disabled: Option<u32>,
    /// Whether taps can be opened.
    pub(super) tun: io::Result<()>,
    pub(super) passt: Option<Tool>,
    pub(super) qemu_img: Option<Tool>,
    pub(super) mmdebstrap: Option<Tool>,
    pub(super) mke2fs: Option<Tool>,
    pub(super) debugfs: Option<Tool>,
    /// Whether the keys of Debian's archive are there.
    pub(super) keyring: bool,
    /// `None` for root, who needs none of it.
    pub(super) uidmap: Option<Uidmap>,
}

/// What a user who is not root makes images with.
pub(super) struct Uidmap {
    pub(super) newuidmap: Option<Tool>,
    pub(super) newgidmap: Option<Tool>,
    /// Whether the user has IDs to map.
    pub(super) ids: Result<(), rootless::Error>,
}

/// A program on PATH.
pub(super) struct Tool {
    pub(super) path: PathBuf,
    /// What it says of its version, if it knows it.
    pub(super) version: Option<String>,
}

/// Look at this host.
pub(super) fn host() -> Host {
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    let limit = |resource| {
        let limit = getrlimit(resource);
        (limit.current, limit.maximum)
    };
    Host {
        cpuinfo: text("/proc/cpuinfo"),
        kvm_pvm: Path::new("/sys/module/kvm_pvm").exists(),
        kvm: host_check::kvm(),
        kvm_group: group_of(Path::new(KVM_DEVICE), &text("/etc/group")),
        meminfo: text("/proc/meminfo"),
        state: state(),
        files: limit(Resource::Nofile),
        locked: limit(Resource::Memlock),
        io_uring: host_check::io_uring(),
        io_uring_disabled: text("/proc/sys/kernel/io_uring_disabled").trim().parse().ok(),
        tun: OpenOptions::new().read(true).write(true).open(TUN).map(drop),
        passt: tool("passt"),
        qemu_img: tool("qemu-img"),
        mmdebstrap: tool("mmdebstrap"),
        mke2fs: quiet_tool("mke2fs"),
        debugfs: quiet_tool("debugfs"),
        keyring: Path::new(KEYRING).is_file(),
        uidmap: (!rustix::process::geteuid().is_root()).then(|| Uidmap {
            newuidmap: quiet_tool("newuidmap"),
            newgidmap: quiet_tool("newgidmap"),
            ids: rootless::has_ids(),
        }),
    }
}

/// The group that may read and write `device`, if there is one.
fn group_of(device: &Path, groups: &str) -> Option<String> {
    let node = fs::metadata(device).ok()?;
    (node.file_type().is_char_device() && node.mode() & 0o060 == 0o060).then_some(())?;
    let id = node.gid().to_string();
    // name:password:id:members
    let mut lines = groups.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| {
        let name = fields.next()?;
        (fields.nth(1) == Some(id.as_str())).then(|| name.to_owned())
    })
}

/// skiff's part of the user's state directory, if entries and sockets can be made there. Nothing is left behind: what does
/// not exist yet is tried beside where it would be.
fn state() -> Result<PathBuf> {
    let dir = state_dir().map_err(|_| anyhow!("neither XDG_STATE_HOME nor HOME is set"))?;
    let there = dir.ancestors().find(|dir| dir.exists()).context("it has no parent")?;
    let place = there.join(format!(".skiff-doctor-{}", std::process::id()));
    DirBuilder::new()
        .mode(0o700)
        .create(&place)
        .with_context(|| format!("cannot write to {}", there.display()))?;
    let tried = try_socket(&place);
    let removed = fs::remove_dir_all(&place);
    tried.with_context(|| format!("no socket can be made in {}", there.display()))?;
    removed.with_context(|| format!("cannot remove {}", place.display()))?;
    Ok(dir)
}

fn try_socket(dir: &Path) -> io::Result<()> {
    // By its descriptor: the path itself may be longer than a socket's can be.
    let dir = File::open(dir)?;
    UnixListener::bind(format!("/proc/self/fd/{}/socket", dir.as_raw_fd())).map(drop)
}

/// A program that knows no `--version`. It is found as [`images::ext4`] finds it: where users may not look for it, too.
fn quiet_tool(name: &str) -> Option<Tool> {
    let mut paths = std::env::var_os("PATH").unwrap_or_default();
    paths.push(":/usr/sbin:/sbin");
    find(name, &paths).map(|path| Tool { path, version: None })
}

fn find(name: &str, paths: &OsStr) -> Option<PathBuf> {
    let is_program =
        |path: &PathBuf| path.metadata().is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0);
    std::env::split_paths(paths).map(|dir| dir.join(name)).find(is_program)
}

fn tool(name: &str) -> Option<Tool> {
    let path = find(name, &std::env::var_os("PATH")?)?;
    let output = Command::new(&path).arg("--version").stdin(Stdio::null()).output();
    let version = output.ok().and_then(|output| {
        let text = String::from_utf8_lossy(&output.stdout);
        let line: String = text.lines().next()?.chars().filter(|c| !c.is_control()).collect();
        version_of(&line, name)
    });
    Some(Tool { path, version })
}

/// What the first line that `name` says of itself adds to its name.
fn version_of(line: &str, name: &str) -> Option<String> {
    let line = line.trim();
    let version = line.strip_prefix(name).map_or(line, str::trim_start);
    // Distributions build passt so that it does not know its own.
    let known = !version.is_empty() && version != "unknown version";
    known.then(|| version.strip_prefix("version ").unwrap_or(version).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_none_has_no_group() {
        assert_eq!(group_of(Path::new("/proc/self/status"), "root:x:0:\n"), None);
        assert_eq!(group_of(Path::new("/nonexistent"), "root:x:0:\n"), None);
        // Open to all, so to its group as well.
        assert_eq!(group_of(Path::new("/dev/null"), "kvm:x:106:me\nroot:x:0:\n"), Some("root".to_owned()));
    }

    #[test]
    fn sockets_are_tried_however_long_the_path_is() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a".repeat(100)).join("b".repeat(100));
        fs::create_dir_all(&deep).unwrap();
        try_socket(&deep).unwrap();
        assert!(try_socket(Path::new("/proc/self")).is_err());
    }

    #[test]
    fn a_tool_is_found_with_its_version_or_not_at_all() {
        assert!(tool("skiff-has-no-such-tool").is_none());
        let tool = tool("bash").unwrap();
        assert!(tool.version.unwrap().contains("bash"));
        assert!(tool.path.is_absolute());
        assert!(quiet_tool("skiff-has-no-such-tool").is_none());
        assert!(quiet_tool("sh").unwrap().version.is_none());
    }

    #[test]
    fn a_version_does_not_repeat_the_name() {
        for (name, line, version) in [
            ("qemu-img", "qemu-img version 7.2.22 (Debian 1:7.2)", Some("7.2.22 (Debian 1:7.2)")),
            ("passt", "passt 0.0~git20230309.7c7625d-1", Some("0.0~git20230309.7c7625d-1")),
            ("passt", "passt unknown version", None),
            ("bash", "GNU bash, version 5", Some("GNU bash, version 5")),
            ("passt", "passt", None),
            ("passt", "", None),
        ] {
            assert_eq!(version_of(line, name).as_deref(), version, "{line}");
        }
    }
}
