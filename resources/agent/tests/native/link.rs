//! The agent's link to a host that is this test.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};

use agent::frame::Frame;
use agent::message::{Hello, Mount, Ready, Welcome};

use crate::support::Agent;

fn welcome(identity: &str, hostname: &str) -> Welcome {
    Welcome {
        protocol: agent::PROTOCOL,
        version: agent::VERSION.into(),
        identity: identity.into(),
        hostname: hostname.into(),
        macs: vec!["02:00:00:00:00:01".into()],
        seed: "5a".repeat(64),
        time_ns: 1,
        mounts: Vec::new(),
    }
}

fn hello(listener: &UnixListener) -> (UnixStream, Hello) {
    let (mut stream, _) = listener.accept().unwrap();
    let hello = Frame::read(&mut stream).unwrap().unwrap().read_as().unwrap();
    (stream, hello)
}

fn greet(listener: &UnixListener, welcome: &Welcome) -> UnixStream {
    let (mut stream, hello) = hello(listener);
    assert_eq!((hello.protocol, hello.init), (agent::PROTOCOL, false));
    assert_eq!(hello.boot_id.len(), 36);
    Frame::message(welcome).unwrap().write(&mut stream).unwrap();
    let ready: Ready = Frame::read(&mut stream).unwrap().unwrap().read_as().unwrap();
    assert_eq!(ready.mounts, Some(0));
    assert_eq!(ready.unmounted.is_some(), !welcome.mounts.is_empty());
    stream
}

#[test]
fn the_host_hears_of_a_folder_that_cannot_be_mounted() {
    let mut agent = Agent::start();
    let listener = UnixListener::bind(agent.path("link")).unwrap();
    let path = agent.path("folder").to_str().unwrap().to_owned();
    let mounts = vec![Mount { tag: "there is no such tag".into(), path, readonly: false }];
    drop(greet(&listener, &Welcome { mounts, ..welcome("one", "web") }));
    assert!(agent.is_alive());
}

#[test]
fn the_guest_becomes_who_the_host_says_each_time_that_it_comes_back() {
    let mut agent = Agent::start();
    fs::create_dir(agent.path("etc")).unwrap();
    fs::write(agent.path("etc/machine-id"), "00000000000000000000000000000000\n").unwrap();
    let name = || fs::read_to_string(agent.path("etc/hostname")).unwrap();
    let listener = UnixListener::bind(agent.path("link")).unwrap();
    let link = greet(&listener, &welcome("one", "web"));
    assert_eq!(name(), "web\n");
    drop(link);
    let link = greet(&listener, &welcome("two", "clone"));
    assert_eq!(name(), "clone\n");
    assert!(!fs::read_to_string(agent.path("etc/machine-id")).unwrap().starts_with("00000000"));
    // What it does not understand is passed over.
    Frame::message(&serde_json::json!({ "sing": true })).unwrap().write(&mut &link).unwrap();
    Frame::Output(vec![0; 10]).write(&mut &link).unwrap();
    assert!(agent.sh("exit 0").output.is_empty());
    drop(link);
    drop(greet(&listener, &welcome("two", "clone")));
    assert!(agent.is_alive());
}

#[test]
fn a_host_that_speaks_another_protocol_is_not_told_that_all_is_well() {
    let agent = Agent::start();
    let listener = UnixListener::bind(agent.path("link")).unwrap();
    for answer in [
        Frame::message(&Welcome { protocol: 99, ..welcome("one", "web") }).unwrap(),
        Frame::message(&7).unwrap(),
        Frame::InputEnd,
    ] {
        let (mut stream, _) = hello(&listener);
        answer.write(&mut stream).unwrap();
        assert!(!matches!(Frame::read(&mut stream), Ok(Some(_))));
    }
    drop(greet(&listener, &welcome("one", "web")));
}
