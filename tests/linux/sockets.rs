//! vsock between a guest and programs on the host, as clients of other monitors use it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use skiff_tests::stream;

use crate::cli::Cli;
use crate::vm::Kernel;

/// Where the guest listens (see `tool/main.rs`).
const ECHO: u32 = 1000;
const SINK: u32 = 1001;
const SOURCE: u32 = 1002;
/// Where the host listens: an echo, and behind it a sink.
const PORT: u32 = 5000;
const MIB: u64 = 1 << 20;
const PIECE: u64 = 256 * 1024;

/// A hundred connections at once and one with `mib` MiB, each way.
pub fn vsock(skiff: &Path, kernel: &Kernel, dir: &Path, mib: u64) -> Result<()> {
    let length = mib * MIB;
    let cli = Cli::new(skiff, dir)?;
    let initrd = kernel.initrd(dir)?;
    let path = dir.join("v.sock");
    let listen = |port: u32, serve: fn(UnixStream) -> std::io::Result<()>| -> Result<()> {
        let listener = UnixListener::bind(format!("{}_{port}", path.display())).context("cannot listen")?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || serve(stream));
            }
        });
        Ok(())
    };
    listen(PORT, echo)?;
    listen(PORT + 1, sink)?;
    let vsock = format!("path={},cid=42", path.display());
    let cmdline =
        format!("console=ttyS0 quiet skiff.do=vsock_serve,vsock_call,idle skiff.port={PORT} skiff.mib={mib}");
    let guest = [
        "run",
        "-d",
        "--name",
        "talker",
        "--kernel",
        &kernel.image(),
        "--initrd",
        &initrd,
        "--memory",
        "256M",
        "--transport",
        kernel.transport,
        "--vsock",
        &vsock,
        "--cmdline",
        &cmdline,
    ];
    cli.run(guest)?;
    let sent = cli.wait_for("talker", "call-send")?;
    sent.expect("same", "true")?;
    sent.expect("bytes", &length.to_string())?;
    let said = cli.facts("talker")?;
    said.last("call-nobody")?.expect("refused", "true")?;
    said.last("call-many")?.expect("good", "100")?;
    from_host(&path, length)?;
    ensure!(connect(&path, 9999).is_err(), "a port on which nobody listens was connected to");
    cli.run(["kill", "talker"])?;
    ensure!(!path.exists(), "the socket was left behind");
    Ok(())
}

fn echo(mut stream: UnixStream) -> std::io::Result<()> {
    let mut reader = stream.try_clone()?;
    std::io::copy(&mut reader, &mut stream)?;
    stream.shutdown(Shutdown::Write)
}

fn sink(mut stream: UnixStream) -> std::io::Result<()> {
    let hash = stream::receive(&mut stream)?;
    writeln!(stream, "{} {:016x}", hash.length(), hash.value())
}

/// Connects to a port of the guest.
fn connect(path: &PathBuf, port: u32) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(path).context("cannot connect to the vsock's socket")?;
    writeln!(stream, "CONNECT {port}")?;
    let mut line = String::new();
    // Byte by byte: what follows the line is the guest's.
    BufReader::with_capacity(1, &stream).read_line(&mut line)?;
    ensure!(line.starts_with("OK ") && line.ends_with('\n'), "port {port} answered {line:?}");
    line.trim_start_matches("OK ").trim().parse::<u32>().context("the port in OK")?;
    Ok(stream)
}

fn from_host(path: &PathBuf, length: u64) -> Result<()> {
    let streams: Vec<UnixStream> = (0..100).map(|_| connect(path, ECHO)).collect::<Result<_>>()?;
    let start = |(seed, mut stream): (u64, UnixStream)| {
        thread::spawn(move || -> Result<()> {
            let mut writer = stream.try_clone()?;
            let sender = thread::spawn(move || -> std::io::Result<u64> {
                let hash = stream::send(&mut writer, seed, PIECE)?;
                writer.shutdown(Shutdown::Write)?;
                Ok(hash)
            });
            let came = stream::receive(&mut stream)?;
            let sent = sender.join().map_err(|_| anyhow!("a thread died"))??;
            ensure!(
                came.value() == sent && came.length() == PIECE,
                "connection {seed}: {} bytes",
                came.length()
            );
            Ok(())
        })
    };
    let threads: Vec<_> = (0..).zip(streams).map(start).collect();
    for thread in threads {
        thread.join().map_err(|_| anyhow!("a thread died"))??;
    }
    let mut stream = connect(path, SINK)?;
    let sent = stream::send(&mut stream, 3, length)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(
        answer.trim() == format!("{length} {sent:016x}"),
        "{length} bytes to the guest came as {answer:?}"
    );
    let mut stream = connect(path, SOURCE)?;
    stream.write_all(&PIECE.to_le_bytes())?;
    let came = stream::receive(&mut stream)?;
    let wanted = stream::send(&mut std::io::sink(), 1, PIECE)?;
    ensure!(
        came.length() == PIECE && came.value() == wanted,
        "what the guest was asked for came as {}",
        came.length()
    );
    Ok(())
}
