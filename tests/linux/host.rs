//! The host's side of the network tests: bridges and taps, an HTTP server.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail};

/// Network devices of the host, gone when this is.
pub struct Devices(Vec<String>);

impl Devices {
    /// A bridge with an address, such as `10.9.0.1/24`, and these taps on it.
    ///
    /// # Errors
    /// When they cannot be made; it takes root.
    pub fn bridge(bridge: &str, address: &str, taps: &[&str]) -> Result<Self> {
        let mut made = Self(Vec::new());
        ip(&format!("link add {bridge} type bridge"))?;
        made.0.push(bridge.to_owned());
        ip(&format!("address add {address} dev {bridge}"))?;
        ip(&format!("link set {bridge} up"))?;
        for tap in taps {
            ip(&format!("tuntap add dev {tap} mode tap"))?;
            made.0.push((*tap).to_owned());
            ip(&format!("link set {tap} master {bridge} up"))?;
        }
        Ok(made)
    }

    /// Takes a device away while it is in use.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove(&mut self, name: &str) -> Result<()> {
        self.0.retain(|made| made != name);
        ip(&format!("link delete {name}"))
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        for name in self.0.iter().rev() {
            let _ = ip(&format!("link delete {name}"));
        }
    }
}

/// `ip` with these words.
///
/// # Errors
/// What it said.
pub fn ip(words: &str) -> Result<()> {
    let output = Command::new("ip").args(words.split(' ')).output().context("cannot run ip")?;
    if !output.status.success() {
        bail!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Gives `content` to whoever asks, over HTTP, on every address at this port, for as long as the tests run.
///
/// # Errors
/// When the port is taken.
pub fn serve_http(port: u16, content: Vec<u8>) -> Result<()> {
    serve(port, move |_| Some(content.clone()))
}

/// The same of files, by the last part of their paths.
///
/// # Errors
/// When the port is taken.
pub fn serve_files(port: u16, files: HashMap<String, Vec<u8>>) -> Result<()> {
    serve(port, move |path| files.get(path.rsplit('/').next()?).cloned())
}

fn serve(port: u16, find: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static) -> Result<()> {
    let listener =
        TcpListener::bind(("0.0.0.0", port)).with_context(|| format!("cannot listen on {port}"))?;
    let find = Arc::new(find);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let find = Arc::clone(&find);
            std::thread::spawn(move || answer(stream, &*find));
        }
    });
    Ok(())
}

fn answer(mut stream: TcpStream, find: &dyn Fn(&str) -> Option<Vec<u8>>) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte)? == 0 {
            return Ok(());
        }
        request.extend(byte);
    }
    let text = String::from_utf8_lossy(&request);
    let content = find(text.split(' ').nth(1).unwrap_or_default());
    let status = if content.is_some() { "200 OK" } else { "404 Not Found" };
    let content = content.unwrap_or_default();
    write!(stream, "HTTP/1.0 {status}\r\nContent-Length: {}\r\n\r\n", content.len())?;
    stream.write_all(&content)?;
    // To close with something unread would reset the connection, and what is on its way with it.
    stream.shutdown(Shutdown::Write)?;
    stream.read_to_end(&mut request).map(drop)
}
