//! [`Guest`]: who this guest is, as the host says. At a boot it gets its name and the whole of its disk; a clone becomes another one. Every
//! time, also after a rollback, it gets new randomness and the right time.
//!
//! What cannot be done is noted and left: a guest without `/etc` is still a guest.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use agent::message::Welcome;

use crate::{init, interfaces, note, sys};

/// How wrong the clock may be.
const TOLERANCE: Duration = Duration::from_secs(1);
/// Who the guest was when it was last told, for as long as it runs: in memory, so that a snapshot holds it and a boot does not.
const KNOWN: &str = "run/skiff-agent.identity";
/// `linux/random.h`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
/// `linux/ext4.h`; its argument is the number of blocks.
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;
/// Bytes of seed at most.
const MAX_SEED: usize = 64;

/// The guest, or in tests a directory that stands for its files; then the kernel is left alone.
#[derive(Debug)]
pub struct Guest {
    root: PathBuf,
    /// [`Welcome::identity`], once it is known.
    known: Option<String>,
}

impl Guest {
    /// The guest whose files are below `root`.
    pub fn new(root: PathBuf) -> Self {
        let known = fs::read_to_string(root.join(KNOWN)).ok().filter(|known| !known.is_empty());
        Self { root, known }
    }

    /// The kernel's, which is drawn at each boot.
    pub fn boot_id(&self) -> String {
        fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
    }

    fn is_real(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Do as the host says.
    pub fn take_on(&mut self, welcome: &Welcome) {
        if self.is_real() {
            tell("reseed", reseed(&welcome.seed));
            tell("set the clock", set_clock(welcome.time_ns));
        }
        let boot = self.known.is_none();
        let clone = self.known.as_ref().is_some_and(|known| *known != welcome.identity);
        if boot || clone {
            tell("set the host name", self.set_hostname(&welcome.hostname));
        }
        if boot && self.is_real() {
            init::wait_for_network();
            tell("grow the root file system", grow_root());
        }
        if clone {
            tell("draw a machine ID", self.new_machine_id());
            if self.is_real() {
                tell("set the MAC addresses", interfaces::set_macs(&welcome.macs));
                init::renew_lease();
            }
        }
        self.known = Some(welcome.identity.clone());
        let _ = fs::create_dir_all(self.root.join("run"));
        tell("remember the identity", fs::write(self.root.join(KNOWN), &welcome.identity));
    }

    fn set_hostname(&self, name: &str) -> io::Result<()> {
        if name.is_empty() {
            return Ok(());
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if name.len() > 64 || !name.bytes().all(plain) {
            return Err(io::Error::other("the name is none for a host"));
        }
        if self.is_real() {
            sys::set_hostname(name)?;
        }
        self.replace("etc/hostname", |_| format!("{name}\n"))?;
        self.replace("etc/hosts", |hosts| with_host(hosts, name))
    }

    /// A clone draws its own. Who has read the old one keeps it, as after a change by hand.
    fn new_machine_id(&self) -> io::Result<()> {
        let mut bytes = [0u8; 16];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        // A random UUID's bits (RFC 9562, 5.4), as systemd has them.
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        for path in ["etc/machine-id", "var/lib/dbus/machine-id"] {
            // A link leads to the other one. One that is not there, or empty, is made at the next boot.
            let found = fs::symlink_metadata(self.root.join(path));
            if found.is_ok_and(|found| found.is_file() && found.len() > 0) {
                self.replace(path, |_| format!("{id}\n"))?;
            }
        }
        Ok(())
    }

    /// Change a file, if its directory is there. All of it or nothing: the guest may be killed at any time.
    fn replace(&self, path: &str, change: impl FnOnce(&str) -> String) -> io::Result<()> {
        let path = self.root.join(path);
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let changed = change(&text);
        if changed == text || !path.parent().is_some_and(Path::is_dir) {
            return Ok(());
        }
        write_aside(&path, &changed)
    }
}

/// Write a file in place of another one.
pub fn write_aside(path: &Path, text: &str) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".skiff-new");
    let aside = PathBuf::from(aside);
    let written = fs::write(&aside, text)
        .and_then(|()| match fs::metadata(path) {
            Ok(before) => fs::set_permissions(&aside, before.permissions()),
            Err(_) => Ok(()),
        })
        .and_then(|()| fs::rename(&aside, path));
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written
}

fn tell(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        note(format_args!("cannot {what}: {error}"));
    }
}

/// `/etc/hosts` with the guest's own name at 127.0.1.1, as Debian has it: `sudo` and others want to resolve it.
fn with_host(hosts: &str, name: &str) -> String {
    let own = |line: &&str| line.split_whitespace().next() == Some("127.0.1.1");
    let line = format!("127.0.1.1\t{name}");
    if !hosts.lines().any(|line| own(&line)) {
        let local =
            if hosts.is_empty() { "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n" } else { hosts };
        let end = if local.ends_with('\n') { "" } else { "\n" };
        return format!("{local}{end}{line}\n");
    }
    hosts.lines().flat_map(|old| [if own(&old) { &*line } else { old }, "\n"]).collect()
}

/// Bytes from hexadecimal digits.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2).take(MAX_SEED);
    pairs.map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}

/// Mix the host's randomness in, and let the kernel use it now: until then, clones draw the same numbers.
fn reseed(seed: &str) -> io::Result<()> {
    /// `struct rand_pool_info`.
    #[repr(C)]
    struct Pool {
        entropy_bits: i32,
        bytes: i32,
        seed: [u8; MAX_SEED],
    }
    let seed = unhex(seed).ok_or_else(|| io::Error::other("the seed is not hexadecimal"))?;
    let mut pool = Pool { entropy_bits: 0, bytes: 0, seed: [0; MAX_SEED] };
    pool.seed.iter_mut().zip(&seed).for_each(|(to, from)| *to = *from);
    pool.bytes = i32::try_from(seed.len().min(MAX_SEED)).unwrap_or(0);
    pool.entropy_bits = pool.bytes.saturating_mul(8);
    let random = fs::OpenOptions::new().write(true).open("/dev/urandom")?;
    sys::ioctl(&random, RNDADDENTROPY, &mut pool)?;
    match sys::ioctl_value(&random, RNDRESEEDCRNG, 0) {
        // Before Linux 4.12 there is no such thing.
        Err(error) if error.raw_os_error() != Some(libc::EINVAL) => Err(error),
        _ => Ok(()),
    }
}

fn set_clock(time_ns: u64) -> io::Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if time_ns == 0 || now.abs_diff(Duration::from_nanos(time_ns)) <= TOLERANCE {
        return Ok(());
    }
    sys::set_clock(time_ns)
}

/// Let an ext4 on a whole disk have all of it.
fn grow_root() -> io::Result<()> {
    const EXT4: u64 = 0xef53;
    let root = fs::File::open("/")?;
    let found = rustix::fs::fstatfs(&root)?;
    if u64::try_from(found.f_type).ok() != Some(EXT4) {
        return Ok(());
    }
    let device = root.metadata()?.dev();
    let device = PathBuf::from(format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device)));
    if device.join("partition").exists() {
        return Ok(());
    }
    let sectors: u64 = fs::read_to_string(device.join("size"))?.trim().parse().map_err(io::Error::other)?;
    let block = u64::try_from(found.f_bsize).unwrap_or_default();
    let Some(mut blocks) = sectors.saturating_mul(512).checked_div(block) else { return Ok(()) };
    if blocks <= found.f_blocks {
        return Ok(());
    }
    match sys::ioctl(&root, EXT4_IOC_RESIZE_FS, &mut blocks) {
        // It has all of it: what it keeps for itself is not in its size.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EROFS)) => Ok(()),
        grown => grown.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn welcome(identity: &str, hostname: &str) -> Welcome {
        Welcome {
            protocol: agent::PROTOCOL,
            version: agent::VERSION.into(),
            identity: identity.into(),
            hostname: hostname.into(),
            macs: Vec::new(),
            seed: "00".repeat(64),
            time_ns: 0,
            mounts: Vec::new(),
        }
    }

    #[test]
    fn a_clone_becomes_another_guest_and_a_rollback_stays_the_same() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
        let machine = "0123456789abcdef0123456789abcdef\n";
        fs::write(dir.path().join("etc/machine-id"), machine).unwrap();
        let mut guest = Guest::new(dir.path().into());
        guest.take_on(&welcome("one", "web"));
        assert_eq!((read("etc/hostname").as_str(), read("etc/machine-id").as_str()), ("web\n", machine));
        assert!(read("etc/hosts").ends_with("127.0.1.1\tweb\n"));
        guest.take_on(&welcome("one", "renamed"));
        assert_eq!(read("etc/hostname"), "web\n");
        // An agent that is started anew in a clone knows that it is one.
        Guest::new(dir.path().into()).take_on(&welcome("two", "web-2"));
        assert_eq!(read("etc/hostname"), "web-2\n");
        assert!(read("etc/hosts").ends_with("127.0.1.1\tweb-2\n"));
        let drawn = read("etc/machine-id");
        assert!(drawn != machine && drawn.len() == machine.len(), "{drawn}");
    }

    #[test]
    fn a_name_that_is_none_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        let guest = Guest::new(dir.path().into());
        for name in ["a b", "a\nb", &"x".repeat(65)] {
            assert!(guest.set_hostname(name).is_err());
        }
        assert!(guest.set_hostname("").is_ok());
        assert_eq!(fs::read_dir(dir.path().join("etc")).unwrap().count(), 0);
    }

    #[test]
    fn hosts_keep_what_else_is_in_them() {
        let hosts = "127.0.0.1 localhost\n127.0.1.1 old.example old\n::1 localhost";
        assert_eq!(with_host(hosts, "new"), "127.0.0.1 localhost\n127.0.1.1\tnew\n::1 localhost\n");
        assert_eq!(with_host("10.0.0.1 db", "new"), "10.0.0.1 db\n127.0.1.1\tnew\n");
    }

    #[test]
    fn seeds_are_hexadecimal() {
        assert_eq!(unhex("00fF10"), Some(vec![0, 255, 16]));
        assert_eq!(unhex("0g"), None);
        assert_eq!(unhex("123"), None);
        assert_eq!(unhex(&"ab".repeat(100)).unwrap().len(), MAX_SEED);
    }
}
