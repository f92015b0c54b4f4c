//! An HTTP server that answers as a test wants it to, or passes on to a real registry and cuts what comes back.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub target: String,
    /// Names in small letters.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What is answered.
pub enum Reply {
    /// These bytes, after which the connection is closed.
    Raw(Vec<u8>),
    /// These bytes, and then zeroes until nobody reads them.
    Endless(Vec<u8>),
    /// What the server on this port answers, of whose body only so many bytes.
    Forward(u16, usize),
}

impl Reply {
    /// A whole answer.
    pub fn new(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut head =
            format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n", body.len());
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        Self::Raw([head.as_bytes(), b"\r\n", body].concat())
    }
}

/// The server. Its threads end with the test's process.
pub struct Stub {
    pub port: u16,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Stub {
    /// Answer all requests so. The second argument is the port of the stub itself.
    pub fn start(answer: impl Fn(&Request, u16) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (seen, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
        let log = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                thread::spawn(move || {
                    // Who sends TLS, or nothing, is not answered.
                    let request = read(&stream)?;
                    log.lock().unwrap().push(request.clone());
                    reply(&stream, &request, answer(&request, port))
                });
            }
        });
        Self { port, seen }
    }

    /// What was asked.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = |limit| {
        let mut line = Vec::new();
        (&mut reader).take(limit).read_until(b'\n', &mut line).ok()?;
        String::from_utf8(line).ok()
    };
    let first = line(8192)?;
    let mut words = first.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let mut headers = Vec::new();
    loop {
        let line = line(8192)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut request = Request { method, target, headers, body: Vec::new() };
    let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    request.body = vec![0; length];
    reader.read_exact(&mut request.body).ok()?;
    Some(request)
}

fn reply(mut stream: &TcpStream, request: &Request, reply: Reply) -> Option<()> {
    match reply {
        Reply::Raw(bytes) => stream.write_all(&bytes).ok(),
        Reply::Endless(bytes) => {
            stream.write_all(&bytes).ok()?;
            loop {
                stream.write_all(&[0; 65536]).ok()?;
            }
        }
        Reply::Forward(port, most) => {
            let mut server = TcpStream::connect(("127.0.0.1", port)).ok()?;
            let mut head = format!("{} {} HTTP/1.1\r\nconnection: close\r\n", request.method, request.target);
            for (name, value) in request.headers.iter().filter(|(name, _)| name != "connection") {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            server.write_all(&[head.as_bytes(), b"\r\n", &request.body].concat()).ok()?;
            let mut answer = Vec::new();
            server.read_to_end(&mut answer).ok()?;
            let body = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
            answer.truncate(body.saturating_add(most));
            stream.write_all(&answer).ok()
        }
    }
}
