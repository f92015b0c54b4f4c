//! Networks: two guests on a bridge, a guest of a user who is not root, a tap that goes away.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use skiff_tests::pattern::random;

use crate::bytes::hash_of;
use crate::cli::Cli;
use crate::host::{self, Devices};
use crate::vm::Kernel;

const MIB: usize = 1 << 20;

/// Two guests and the host on a bridge: ping, HTTP, iperf3 both ways.
pub fn bridge(skiff: &Path, first: &Kernel, second: &Kernel, dir: &Path) -> Result<()> {
    let _devices = Devices::bridge("skbr0", "10.9.0.1/24", &["sktap0", "sktap1"])?;
    let content = random(0, 8 * MIB);
    host::serve_http(8765, content.clone())?;
    let cli = Cli::new(skiff, dir)?;
    let initrds = (first.initrd(dir)?, second.initrd(dir)?);
    let server = [
        "run",
        "-d",
        "--name",
        "server",
        "--kernel",
        &first.image(),
        "--initrd",
        &initrds.0,
        "--memory",
        "256M",
        "--net",
        "tap=sktap0,mac=52:54:00:00:00:01,mtu=1400",
        "--cmdline",
        "console=ttyS0 quiet skiff.do=net,serve,idle skiff.ip=10.9.0.2",
    ];
    cli.run(server)?;
    let served = cli.wait_for("server", "serve")?;
    let net = cli.facts("server")?.last("net")?.clone();
    net.expect("mac", "52:54:00:00:00:01")?;
    net.expect("mtu", "1400")?;
    let client = [
        "run",
        "-d",
        "--name",
        "client",
        "--kernel",
        &second.image(),
        "--initrd",
        &initrds.1,
        "--memory",
        "256M",
        "--transport",
        "mmio",
        "--net",
        "tap=sktap1",
        "--cmdline",
        "console=ttyS0 quiet skiff.do=net,ping,fetch,iperf,poweroff skiff.ip=10.9.0.3 skiff.peer=10.9.0.2 \
         skiff.url=http://10.9.0.2:8000/file",
    ];
    cli.run(client)?;
    cli.run(["wait", "client"])?;
    let said = cli.facts("client")?;
    said.no_problems()?;
    said.last("fetch")?.expect("sha256", served.get("sha256")?)?;
    for iperf in said.all("iperf") {
        ensure!(iperf.get("mbits")?.parse::<u32>().is_ok_and(|mbits| mbits > 0), "iperf3 moved nothing");
    }
    ensure!(said.count("iperf") == 2, "iperf3 ran {} times, not twice", said.count("iperf"));
    from_host(&cli, second, &initrds.1, dir, &content)
}

/// A guest fetches from the host, and the host from a guest.
fn from_host(cli: &Cli<'_>, kernel: &Kernel, initrd: &str, dir: &Path, content: &[u8]) -> Result<()> {
    let fetcher = [
        "run",
        "--rm",
        "--name",
        "fetcher",
        "--kernel",
        &kernel.image(),
        "--initrd",
        initrd,
        "--memory",
        "256M",
        "--net",
        "tap=sktap1",
        "--cmdline",
        "console=ttyS0 quiet skiff.do=net,fetch,poweroff skiff.ip=10.9.0.4 skiff.url=http://10.9.0.1:8765/file",
    ];
    let said = crate::facts::Facts::of(&cli.run(fetcher)?);
    said.no_problems()?;
    said.last("fetch")?.expect("sha256", &hash_of(dir, content)?)?;
    ensure!(cli.status("fetcher")?.is_empty(), "--rm left an entry");
    let mut answer = Vec::new();
    let mut stream = TcpStream::connect("10.9.0.2:8000").context("connecting to the guest")?;
    stream.write_all(b"GET /file HTTP/1.0\r\n\r\n")?;
    stream.read_to_end(&mut answer)?;
    ensure!(answer.len() > 4 * MIB, "the guest gave {} bytes", answer.len());
    Ok(())
}

/// A guest on the network of a user who is not root: out to the host's HTTP server, in through `-p` by TCP and UDP; then passt is
/// killed, and the VM lives on.
pub fn user(skiff: &Path, kernel: &Kernel, dir: &Path) -> Result<()> {
    // passt takes addresses and routes from the host's first interface that leads anywhere.
    let _devices = Devices::bridge("skbr1", "192.0.2.2/24", &["sktap2"])?;
    host::ip("route add default via 192.0.2.1 dev skbr1")?;
    let content = random(0, 2 * MIB);
    host::serve_http(8766, content.clone())?;
    let initrd = kernel.initrd(dir)?;
    let cli = Cli::new(skiff, dir)?.of_nobody(dir)?;
    let guest = [
        "run",
        "-d",
        "--name",
        "user",
        "--kernel",
        &kernel.image(),
        "--initrd",
        &initrd,
        "--memory",
        "256M",
        "--net",
        "user",
        "-p",
        "127.0.0.1:18000:8000",
        "-p",
        "127.0.0.1:11003:1003/udp",
        "--cmdline",
        "console=ttyS0 quiet skiff.do=net,serve,fetch,idle skiff.ip=dhcp skiff.url=http://10.0.2.2:8766/file",
    ];
    cli.run(guest)?;
    cli.wait_for("user", "fetch")?.expect("sha256", &hash_of(dir, &content)?)?;
    let mut answer = Vec::new();
    let mut stream = TcpStream::connect("127.0.0.1:18000").context("connecting through -p")?;
    stream.write_all(b"GET /file HTTP/1.0\r\n\r\n")?;
    stream.read_to_end(&mut answer)?;
    ensure!(answer.len() > 4 * MIB, "the guest gave {} bytes through -p", answer.len());
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.connect("127.0.0.1:11003")?;
    let mut buffer = [0; 64];
    let echoed = (0..20).any(|_| {
        socket.send(b"hello over UDP").is_ok()
            && socket.recv(&mut buffer).is_ok_and(|count| &buffer[..count] == b"hello over UDP")
    });
    ensure!(echoed, "nothing came back over UDP");
    lose_passt(&cli)
}

fn lose_passt(cli: &Cli<'_>) -> Result<()> {
    let passt = processes("passt")?;
    ensure!(!passt.is_empty(), "there is no passt");
    for pid in &passt {
        kill(*pid)?;
    }
    ensure!(cli.status("user")?.contains("Running"), "the VM did not outlive passt");
    cli.run(["kill", "user"])?;
    cli.run(["rm", "user"])?;
    cli.until("no passt is left", || Ok(processes("passt")?.is_empty()))
}

/// The processes whose program is called so.
pub fn processes(name: &str) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot list processes")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // `passt.avx2` is passt, too. A zombie is none.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let called = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')'));
        if called.is_some_and(|(comm, rest)| comm.starts_with(name) && !rest.starts_with(" Z")) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// SIGKILL.
pub fn kill(pid: i32) -> Result<()> {
    // SAFETY: no memory is passed.
    let result = unsafe { libc::kill(pid, libc::SIGKILL) };
    ensure!(result == 0, "cannot kill {pid}: {}", std::io::Error::last_os_error());
    Ok(())
}

/// The tap goes away under a guest: it sees its carrier go, and the VM lives on.
pub fn tap_gone(skiff: &Path, kernel: &Kernel, dir: &Path) -> Result<()> {
    let mut devices = Devices::bridge("skbr2", "10.9.2.1/24", &["sktap3"])?;
    let cli = Cli::new(skiff, dir)?;
    let initrd = kernel.initrd(dir)?;
    let guest = [
        "run",
        "-d",
        "--name",
        "lost",
        "--kernel",
        &kernel.image(),
        "--initrd",
        &initrd,
        "--memory",
        "256M",
        "--net",
        "tap=sktap3",
        "--cmdline",
        "console=ttyS0 quiet skiff.do=net,carrier,idle skiff.ip=10.9.2.2",
    ];
    cli.run(guest)?;
    cli.wait_for("lost", "net")?;
    devices.remove("sktap3")?;
    cli.wait_for("lost", "carrier")?;
    ensure!(cli.status("lost")?.contains("Running"), "the VM did not outlive its tap");
    // It is as idle as before: an end that cannot be had any more must not be asked for again and again.
    cli.run(["kill", "lost"])?;
    let again = cli.output(&["start", "lost"])?;
    let said = String::from_utf8_lossy(&again.stderr);
    ensure!(!again.status.success() && said.contains("sktap3"), "starting without the tap: {said}");
    Ok(())
}
