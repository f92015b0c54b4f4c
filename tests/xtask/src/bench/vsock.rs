//! Bytes through vsock: a guest that polls from ring 3 sends to a program on the host, and receives as much from it.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use anyhow::{Context, Result, anyhow};

use super::table::{Line, Unit};
use super::{Bench, median};
use crate::progress::Step;
use crate::tool;

/// Where the guest connects to.
const PORT: u32 = 2002;
const MEBIBYTES: usize = 256;
const ROUNDS: usize = 5;

/// Each way by itself, one connection.
pub fn measure(bench: &Bench) -> Result<Vec<Line>> {
    let step = Step::start("bytes through vsock");
    let path = bench.work.join("v.sock");
    let port = bench.work.join(format!("v.sock_{PORT}"));
    let (mut out, mut back) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        step.detail(format!("{} of {ROUNDS}", round + 1));
        // What an earlier run left behind.
        let _ = std::fs::remove_file(&port);
        let listener =
            UnixListener::bind(&port).with_context(|| format!("cannot listen at {}", port.display()))?;
        let host = std::thread::spawn(move || serve(&listener));
        let mut skiff = Command::new(&bench.skiff);
        skiff
            .args(["run", "--memory", "128M", "--transport", "mmio", "--kernel"])
            .arg(bench.guest("testguest"));
        skiff.args(["--cmdline", &format!("test=vsock-speed mib={MEBIBYTES}"), "--vsock"]);
        let said = tool::capture(skiff.arg(format!("path={}", path.display())))?;
        out.push(rate(&said, "to-host")?);
        back.push(rate(&said, "to-guest")?);
        host.join().map_err(|_| anyhow!("a thread died"))?.context("the host's end of vsock broke")?;
    }
    std::fs::remove_file(&port).with_context(|| format!("cannot remove {}", port.display()))?;
    step.done();
    let line = |name, rates: &[f64]| Line::new("vsock", name, median(rates), Unit::MebibytesPerSecond);
    Ok(vec![line("vsock, guest to host", &out), line("vsock, host to guest", &back)])
}

/// Takes what the guest sends, and sends as much.
fn serve(listener: &UnixListener) -> std::io::Result<()> {
    let (mut stream, _): (UnixStream, _) = listener.accept()?;
    let mut buffer = vec![0; 256 * 1024];
    let mut left = MEBIBYTES << 20;
    while left > 0 {
        match stream.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => left -= count.min(left),
        }
    }
    for _ in 0..(MEBIBYTES << 20) / buffer.len() {
        stream.write_all(&buffer)?;
    }
    // Until the guest has had all of it.
    stream.read(&mut buffer).map(drop)
}

/// From `to-host bytes B nanos T`: MiB a second.
fn rate(said: &str, way: &str) -> Result<f64> {
    let find = || {
        let line = said.lines().find(|line| line.trim().starts_with(way))?;
        let mut words = line.split_whitespace();
        let bytes: f64 = words.by_ref().skip_while(|word| *word != "bytes").nth(1)?.parse().ok()?;
        let nanos: f64 = words.skip_while(|word| *word != "nanos").nth(1)?.parse().ok()?;
        Some(bytes / f64::from(1 << 20) / (nanos / 1e9))
    };
    find().with_context(|| format!("no result {way}:\n{said}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_way_has_its_line() {
        let said = "to-host bytes 2097152 nanos 1000000000\r\nto-guest bytes 1048576 nanos 500000000\r\n";
        assert!((super::rate(said, "to-host").unwrap() - 2.0).abs() < 1e-9);
        assert!((super::rate(said, "to-guest").unwrap() - 2.0).abs() < 1e-9);
        assert!(super::rate("FAIL", "to-host").is_err());
    }
}
