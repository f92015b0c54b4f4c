//! The link with agents made of plain sockets.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

struct Fixture {
    _dir: tempfile::TempDir,
    _vsock: VsockListener,
    path: PathBuf,
    readiness: Arc<Readiness>,
    notices: Receiver<Notice>,
    link: Link,
}

impl Fixture {
    fn new() -> Self {
        Self::with(Vec::new())
    }

    fn with(mounts: Vec<Mount>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vsock = VsockListener::bind(&dir.path().join("v")).unwrap();
        let socket = vsock.of_port(::agent::LINK_PORT).unwrap();
        let path = socket.path().to_owned();
        let readiness = Arc::new(Readiness::new().unwrap());
        let (tell, notices) = channel();
        let listener = Arc::new(move |notice| drop(tell.send(notice)));
        let identity = Identity {
            vm: "0123".to_owned(),
            hostname: "web".to_owned(),
            macs: vec!["02:00:00:00:00:01".to_owned()],
            mounts,
        };
        let link = Link::start(socket, identity, Arc::clone(&readiness), listener).unwrap();
        Self { _dir: dir, _vsock: vsock, path, readiness, notices, link }
    }

    fn heard(&self) -> Notice {
        self.notices.recv_timeout(PATIENCE).unwrap()
    }

    fn ready(&self) -> UnixStream {
        let mut stream = greet(&self.path, ::agent::PROTOCOL);
        Frame::message(&Ready::default()).unwrap().write(&mut stream).unwrap();
        assert!(matches!(self.heard(), Notice::Ready { .. }));
        stream
    }
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn greet(path: &Path, protocol: u32) -> UnixStream {
    let mut stream = connect(path);
    let hello = Hello { protocol, version: "1.2".to_owned(), boot_id: "b".to_owned(), init: true };
    Frame::message(&hello).unwrap().write(&mut stream).unwrap();
    let welcome: Welcome = Frame::read(&mut stream).unwrap().unwrap().read_as().unwrap();
    assert_eq!((welcome.identity.as_str(), welcome.hostname.as_str()), ("0123", "web"));
    assert_eq!((welcome.macs.len(), welcome.seed.len()), (1, 128));
    stream
}

#[test]
fn an_agent_is_ready_until_its_link_ends_or_the_guest_is_another_one() {
    let fixture = Fixture::new();
    let stream = fixture.ready();
    assert_eq!(fixture.readiness.agent().unwrap().version, "1.2");
    drop(stream);
    assert_eq!(fixture.heard(), Notice::NotReady);
    assert!(fixture.readiness.agent().is_none());
    let mut stream = fixture.ready();
    fixture.link.reset();
    assert!(fixture.readiness.agent().is_none(), "at once");
    assert_eq!(fixture.heard(), Notice::NotReady);
    assert!(matches!(Frame::read(&mut stream), Ok(None) | Err(_)), "its link is closed");
    let _stream = fixture.ready();
}

#[test]
fn the_newest_that_says_hello_has_the_link() {
    let fixture = Fixture::new();
    let mut old = fixture.ready();
    let silent = connect(&fixture.path);
    let new = greet(&fixture.path, ::agent::PROTOCOL);
    assert_eq!(fixture.heard(), Notice::NotReady);
    assert!(matches!(Frame::read(&mut old), Ok(None) | Err(_)));
    drop((silent, new));
    let _stream = fixture.ready();
}

#[test]
fn an_agent_that_is_init_is_asked_to_switch_off() {
    let fixture = Fixture::new();
    let mut stream = fixture.ready();
    fixture.link.power_off();
    let asked: Ask = Frame::read(&mut stream).unwrap().unwrap().read_as().unwrap();
    assert_eq!(asked, Ask::PowerOff);
}

#[test]
fn how_the_command_ended_that_a_guest_was_for_is_known_until_there_is_another_guest() {
    let fixture = Fixture::new();
    let _ready = fixture.ready();
    assert_eq!(fixture.link.finished(), None);
    let mut stream = connect(&fixture.path);
    Frame::message(&Finished { finished: 3 }).unwrap().write(&mut stream).unwrap();
    let answer: Finished = Frame::read(&mut stream).unwrap().unwrap().read_as().unwrap();
    assert_eq!((answer.finished, fixture.link.finished()), (3, Some(3)));
    assert!(fixture.readiness.agent().is_some(), "the link lives on");
    fixture.link.reset();
    assert_eq!(fixture.link.finished(), None);
}

#[test]
fn an_agent_of_another_protocol_is_never_ready() {
    let fixture = Fixture::new();
    let mut stream = greet(&fixture.path, 99);
    Frame::message(&Ready::default()).unwrap().write(&mut stream).unwrap();
    // What comes after it has been seen.
    drop(stream);
    let _stream = fixture.ready();
}

#[test]
fn what_breaks_the_rules_is_hung_up_on() {
    let fixture = Fixture::new();
    let endless = Frame::Output(vec![0; MAX_SAID]);
    let nonsense = Frame::Message(b"no".to_vec());
    for frame in [endless, nonsense, Frame::InputEnd] {
        let mut stream = connect(&fixture.path);
        let _ = frame.write(&mut stream);
        assert!(matches!(Frame::read(&mut stream), Ok(None) | Err(_)), "{frame:?}");
    }
    let mut chatty = fixture.ready();
    while Frame::message(&Ready::default()).unwrap().write(&mut chatty).is_ok() {}
    assert_eq!(fixture.heard(), Notice::NotReady);
    let _stream = fixture.ready();
}

#[test]
fn an_agent_is_ready_when_it_has_mounted_what_it_was_told() {
    let mount = Mount { tag: "fs0".to_owned(), path: "/src".to_owned(), readonly: true };
    for (ready, useless) in [
        (Ready { mounts: Some(1), unmounted: None }, None),
        (Ready::default(), Some("mounts no shared folders: build its image again")),
        (
            Ready { mounts: Some(0), unmounted: Some("fs0 at /src: \x1bno".to_owned()) },
            Some("the guest cannot mount a shared folder: fs0 at /src: no"),
        ),
    ] {
        let fixture = Fixture::with(vec![mount.clone()]);
        let mut stream = connect(&fixture.path);
        let hello = Hello {
            protocol: ::agent::PROTOCOL,
            version: "1.2".to_owned(),
            boot_id: "b".to_owned(),
            init: true,
        };
        Frame::message(&hello).unwrap().write(&mut stream).unwrap();
        let welcome: Welcome = Frame::read(&mut stream).unwrap().unwrap().read_as().unwrap();
        assert_eq!(welcome.mounts, std::slice::from_ref(&mount));
        Frame::message(&ready).unwrap().write(&mut stream).unwrap();
        let Some(useless) = useless else {
            assert!(matches!(fixture.heard(), Notice::Ready { .. }));
            continue;
        };
        let mut fds = [PollFd::new(&*fixture.readiness, PollFlags::IN)];
        poll(&mut fds, Timespec::try_from(PATIENCE).ok().as_ref()).unwrap();
        let why = fixture.readiness.useless().unwrap();
        assert!(why.contains(useless), "{why}");
        assert!(fixture.readiness.agent().is_none());
    }
}
