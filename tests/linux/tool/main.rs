//! The guest's side of the network tests, linked statically: what busybox has no applet for.
//!
//! `serve` answers on vsock and UDP until the machine ends; `call` connects to the host. Results are one line each, in the form
//! that `facts.rs` reads.

use std::io::{self, Read, Write};
use std::net::UdpSocket;
use std::path::Path;
use std::process::ExitCode;

mod folder;
mod life;
/// The host's side has the same.
#[path = "../../src/stream.rs"]
mod stream;
mod vsock;

use vsock::{HOST, Listener, Stream};

/// Gives back what it gets.
const ECHO: u32 = 1000;
/// Takes everything, then gives its hash.
const SINK: u32 = 1001;
/// Is told a length, and gives as much.
const SOURCE: u32 = 1002;
/// UDP: gives back what it gets.
const UDP_ECHO: u16 = 1003;
/// How much each connection of many carries.
const PIECE: u64 = 256 * 1024;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u32>().unwrap_or(0);
    let done = match words[..] {
        ["serve"] => serve(),
        ["udp-echo"] => udp_echo(),
        ["live", dir] => life::live(Path::new(dir)),
        ["folder", dir] => folder::check(Path::new(dir)),
        ["folder-readonly", dir] => folder::check_readonly(Path::new(dir)),
        ["call-many", port, count] => call_many(number(port), number(count)),
        ["call-send", port, mib] => call_send(number(port), u64::from(number(mib)) << 20),
        ["call-nobody", port] => call_nobody(number(port)),
        _ => Err(io::Error::other(
            "serve | udp-echo | live DIR | folder DIR | folder-readonly DIR | call-many PORT N | call-send PORT MIB | call-nobody PORT",
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("skiff-guest: problem {}={error:?}", words.first().unwrap_or(&"tool"));
            ExitCode::FAILURE
        }
    }
}

/// What is done with a connection.
type Service = fn(Stream) -> io::Result<()>;

/// Three ports, each connection in a thread of its own.
fn serve() -> io::Result<()> {
    let services: [(u32, Service); 3] = [(ECHO, echo), (SINK, sink), (SOURCE, source)];
    let mut threads = Vec::new();
    for (port, service) in services {
        let listener = Listener::bind(port)?;
        threads.push(std::thread::spawn(move || {
            while let Ok(stream) = listener.accept() {
                std::thread::spawn(move || service(stream));
            }
        }));
    }
    println!("skiff-guest: serving vsock={ECHO},{SINK},{SOURCE}");
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

fn echo(mut stream: Stream) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.end_writing(),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}

fn sink(mut stream: Stream) -> io::Result<()> {
    let hash = stream::receive(&mut stream)?;
    stream.write_all(format!("{} {:016x}\n", hash.length(), hash.value()).as_bytes())?;
    stream.end_writing()
}

/// The length is 8 bytes, little-endian.
fn source(mut stream: Stream) -> io::Result<()> {
    let mut length = [0; 8];
    stream.read_exact(&mut length)?;
    stream::send(&mut stream, 1, u64::from_le_bytes(length))?;
    stream.end_writing()
}

fn udp_echo() -> io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", UDP_ECHO))?;
    println!("skiff-guest: serving udp={UDP_ECHO}");
    let mut buffer = [0; 2048];
    loop {
        let (count, from) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..count], from)?;
    }
}

/// `count` connections at once to an echo on the host, each with bytes of its own.
fn call_many(port: u32, count: u32) -> io::Result<()> {
    let streams: Vec<Stream> = (0..count).map(|_| Stream::connect(HOST, port)).collect::<io::Result<_>>()?;
    let start = |(seed, mut stream): (u64, Stream)| {
        std::thread::spawn(move || -> io::Result<bool> {
            let mut writer = stream.try_clone()?;
            let sender = std::thread::spawn(move || -> io::Result<u64> {
                let hash = stream::send(&mut writer, seed, PIECE)?;
                writer.end_writing()?;
                Ok(hash)
            });
            let came = stream::receive(&mut stream)?;
            let sent = sender.join().map_err(|_| io::Error::other("a thread died"))??;
            Ok(came.value() == sent && came.length() == PIECE)
        })
    };
    let threads: Vec<_> = (0..).zip(streams).map(start).collect();
    let mut good = 0;
    for thread in threads {
        good += u32::from(thread.join().map_err(|_| io::Error::other("a thread died"))??);
    }
    println!("skiff-guest: call-many good={good}");
    Ok(())
}

/// Sends to a sink on the host and reads its hash.
fn call_send(port: u32, length: u64) -> io::Result<()> {
    let mut stream = Stream::connect(HOST, port)?;
    let sent = stream::send(&mut stream, 2, length)?;
    stream.end_writing()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let same = answer.trim() == format!("{length} {sent:016x}");
    println!("skiff-guest: call-send same={same} bytes={length}");
    Ok(())
}

/// Nobody listens there: it is to be refused at once.
fn call_nobody(port: u32) -> io::Result<()> {
    let refused = Stream::connect(HOST, port).err().map(|error| error.kind());
    println!("skiff-guest: call-nobody refused={}", refused.is_some());
    Ok(())
}
