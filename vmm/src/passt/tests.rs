//! The life of a passt: fakes that bash plays, and the real one where it is installed.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use arch::memory::{GuestRam, SharedRam};
use devices::net::HEADER;
use devices::net::frame::Frame;
use devices::virtio::chain::Segment;
use rustix::process::{Pid, Signal, kill_process};
use vm_memory::{Bytes, GuestAddress};

use super::*;

/// What is waited for comes within this, or never.
const LONG: Duration = Duration::from_secs(20);
const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

fn options(ports: &[PortForward]) -> Options<'_> {
    Options { mac: MAC, mtu: 65520, ports }
}

/// A network of a bash script, in which `$fd` is the socket and `$0` is `argument`.
fn fake(script: &str, argument: &Path) -> Result<Passt, PasstError> {
    let script = format!("for fd; do :; done; {script}");
    Passt::start_program(&["bash", "-c", &script, argument.to_str().unwrap()], &options(&[]))
}

/// Sends back every frame, the first (which asks whether it is there) too, and tells its process.
const ECHO: &str = "echo $$ >\"$0.new\"; mv \"$0.new\" \"$0\"; exec cat <&$fd >&$fd";

/// What `found` finds, which comes sooner or later.
fn soon<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + LONG;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < until, "{what} does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A guest that has a port.
struct Guest {
    ram: SharedRam,
    port: Box<dyn Port>,
}

impl Guest {
    fn new(network: &Passt) -> Option<Self> {
        let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
        let port = network.port(0).ok()?;
        Some(Self { ram, port })
    }

    fn memory(&self, at: u64, len: usize) -> Frame {
        let mut frame = Frame::new(&self.ram);
        assert!(frame.push(Segment { addr: GuestAddress(at), len: len as u32 }).unwrap());
        frame
    }

    fn send(&mut self, frame: &[u8]) {
        self.ram.write_slice(frame, GuestAddress(0x1000)).unwrap();
        let frame = self.memory(0x1000, frame.len());
        self.port.send(&[0; HEADER], &frame).unwrap();
    }

    /// The next frame for which `wanted` holds.
    fn receive(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let room = self.memory(0x20000, 0x20000);
        soon("a frame", || match self.port.receive(&room) {
            Ok(len) => {
                let mut frame = vec![0; len - HEADER];
                self.ram.read_slice(&mut frame, GuestAddress(0x20000 + HEADER as u64)).unwrap();
                Some(frame).filter(|frame| wanted(frame))
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                None
            }
        })
    }

    fn sees_the_end(&mut self) -> bool {
        let room = self.memory(0x20000, 0x20000);
        soon("the end", || match self.port.receive(&room) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => Some(error.kind() == ErrorKind::UnexpectedEof),
            Ok(_) => None,
        })
    }
}

fn is_there(process: i32) -> bool {
    Path::new(&format!("/proc/{process}")).exists()
}

fn sigkill(process: i32) {
    kill_process(Pid::from_raw(process).unwrap(), Signal::KILL).unwrap();
}

fn number_in(path: &Path) -> Option<i32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A directory that goes with the test.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("skiff-passt-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn one_that_ends_at_once_is_an_error_in_its_own_words() {
    let text = |script: &str| fake(script, Path::new("fake")).err().unwrap().to_string();
    assert_eq!(
        text("echo 'Failed to send 9 bytes to syslog' >&2; echo 'External interface not usable' >&2; exit 1"),
        "passt, which makes the user network, ended at once: External interface not usable"
    );
    assert!(text("exit 7").ends_with("exit status: 7"), "without a word there is its status");
    // One that closes its socket and stays is not waited for.
    assert!(text("eval \"exec $fd>&-\"; exec sleep 1000").ends_with("signal: 9 (SIGKILL)"));
}

#[test]
fn without_passt_the_fix_is_named() {
    let error = Passt::start_program(&["/nonexistent/passt"], &options(&[])).err().unwrap();
    assert_eq!(
        error.to_string(),
        "passt, which makes user networks, is not installed: sudo apt install passt"
    );
}

#[test]
fn one_that_never_reads_is_not_waited_for_longer_than_asked_and_is_killed() {
    let mut child = child::Command::new(&["bash", "-c", "exec sleep 1000"], &options(&[])).start().unwrap();
    let process = child.id() as i32;
    assert_eq!(child.settle(Instant::now() + Duration::from_millis(50), None).unwrap(), Settled::TimedOut);
    assert!(is_there(process));
    let cancel = EventFd::new(0).unwrap();
    cancel.write(1).unwrap();
    assert_eq!(child.settle(Instant::now() + LONG, Some(&cancel)).unwrap(), Settled::Cancelled);
    drop(child);
    assert!(!is_there(process));
}

#[test]
fn one_that_is_killed_is_reaped_and_started_again_and_ends_with_the_vm() {
    let place = Place::new("again");
    let told = place.0.join("process");
    let network = fake(ECHO, &told).unwrap();
    let first = soon("the process", || number_in(&told));
    let mut guest = Guest::new(&network).unwrap();
    let hello = [&[1; 60][..], b"hello"].concat();
    guest.send(&hello);
    guest.receive(|frame| frame == hello);

    std::fs::remove_file(&told).unwrap();
    sigkill(first);
    assert!(guest.sees_the_end());
    soon("its burial", || (!is_there(first)).then_some(()));
    drop(guest);
    let second = soon("the process", || number_in(&told));
    assert_ne!(first, second);
    let mut guest = soon("a new port", || Guest::new(&network));
    guest.send(&hello);
    guest.receive(|frame| frame == hello);

    drop(network);
    assert!(!is_there(second), "it is reaped by then");
    assert!(guest.sees_the_end());
}

#[test]
fn a_vm_ends_at_once_while_passt_cannot_be_started_again() {
    let place = Place::new("never");
    let told = place.0.join("process");
    // It works once.
    let network = fake(&format!("[ -e \"$0\" ] && exit 1; {ECHO}"), &told).unwrap();
    let mut guest = Guest::new(&network).unwrap();
    sigkill(soon("the process", || number_in(&told)));
    assert!(guest.sees_the_end());
    assert!(Guest::new(&network).is_none());
    drop(network);
}

/// Whether passt is installed; says that the test is left out otherwise.
fn has_passt() -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("passt").exists()));
    if !found {
        eprintln!("left out: passt is not installed");
    }
    found
}

/// A DHCP request for an address (RFC 2131, 2132), in UDP, IPv4 and Ethernet.
fn dhcp_discover() -> Vec<u8> {
    let mut dhcp = vec![1, 1, 6, 0, 0, 0, 0x12, 0x34, 0, 0, 0x80, 0];
    dhcp.resize(28, 0);
    dhcp.extend(MAC);
    dhcp.resize(236, 0);
    dhcp.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]);
    let udp_len = 8 + dhcp.len() as u16;
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255];
    ip[2..4].copy_from_slice(&(20 + udp_len).to_be_bytes());
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    ip[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    let udp = [[0, 68], [0, 67], udp_len.to_be_bytes(), [0, 0]].concat();
    [&[0xff; 6], &MAC[..], &[8, 0], &ip, &udp, &dhcp].concat()
}

#[test]
fn the_real_passt_gives_an_address_and_leads_a_port_into_the_guest() {
    if !has_passt() {
        return;
    }
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let ports = [format!("127.0.0.1:{free}:80").parse().unwrap()];
    let network = Passt::start(&options(&ports)).unwrap();
    let mut guest = Guest::new(&network).unwrap();

    guest.send(&dhcp_discover());
    let offer = guest.receive(|frame| frame.get(23) == Some(&17) && frame.get(36..38) == Some(&[0, 68]));
    assert_eq!(offer[..6], MAC);
    assert_eq!(offer[26..30], [10, 0, 2, 2], "the gateway offers it");
    assert_eq!(offer[58..62], [10, 0, 2, 15]);
    let options = &offer[42 + 240..];
    assert!(options.windows(4).any(|option| option == [26, 2, 0xff, 0xf0]), "with an MTU of 65520");

    let _client = TcpStream::connect(("127.0.0.1", free)).unwrap();
    let syn = guest.receive(|frame| frame.get(23) == Some(&6));
    assert_eq!((&syn[..6], &syn[26..30], &syn[30..34]), (&MAC[..], &[10, 0, 2, 2][..], &[10, 0, 2, 15][..]));
    assert_eq!(syn[36..38], [0, 80]);
}

/// Set for the process that is to be killed; the file in which it says what is to go with it.
const VICTIM: &str = "SKIFF_TEST_PASST_VICTIM";

#[test]
fn the_real_passt_goes_with_a_vm_that_is_killed() {
    if let Some(told) = std::env::var_os(VICTIM).map(PathBuf::from) {
        let mut command = child::Command::new(&["passt"], &options(&[])).start().unwrap();
        command.settle(Instant::now() + LONG, None).unwrap();
        std::fs::write(told.with_extension("new"), command.id().to_string()).unwrap();
        std::fs::rename(told.with_extension("new"), told).unwrap();
        std::thread::sleep(2 * LONG);
        return;
    }
    if !has_passt() {
        return;
    }
    let place = Place::new("killed");
    let told = place.0.join("process");
    let name = "passt::tests::the_real_passt_goes_with_a_vm_that_is_killed";
    let mut victim = Command::new(std::env::current_exe().unwrap());
    let mut victim = victim.args(["--exact", name]).env(VICTIM, &told).spawn().unwrap();
    let passt = soon("the process", || number_in(&told));
    assert!(is_there(passt));
    victim.kill().unwrap();
    victim.wait().unwrap();
    soon("its end", || (!is_there(passt)).then_some(()));
}
