//! virtio-vsock: the host's half of what the guests do in tests/guests/testguest/src/vsock.rs.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use skiff_tests::machine::{Ended, Machine, Transport};
use skiff_tests::pattern::random;
use tempfile::TempDir;

use crate::on_both;

on_both!(
    the_host_reaches_the_guest,
    many_at_once_are_served,
    the_guest_reaches_the_host,
    much_goes_both_ways,
    one_direction_ends_and_the_other_goes_on,
);

/// Where the guest listens.
const SERVICE: u32 = 1000;

/// A directory for sockets, and the VM's in it.
fn socket() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.sock");
    (directory, path)
}

fn machine(test: &str, transport: Transport, path: &Path) -> Machine {
    Machine::guest(test).transport(transport).flag("--vsock", path)
}

/// Where the guest finds the host on `port`.
fn listen(path: &Path, port: u32) -> UnixListener {
    UnixListener::bind(format!("{}_{port}", path.display())).unwrap()
}

/// Connect to the guest's `port`, saying `words` in the same breath.
fn connect(path: &Path, port: u32, words: &[u8]) -> UnixStream {
    let mut client = UnixStream::connect(path).unwrap();
    let mut line = format!("CONNECT {port}\n").into_bytes();
    line.extend_from_slice(words);
    client.write_all(&line).unwrap();
    client
}

/// What the VM answers, byte by byte: what follows is the guest's.
fn answer(mut client: &UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\n") && client.read(&mut byte).unwrap() == 1 {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

fn assert_ok(answer: &str) {
    let port = answer.strip_prefix("OK ").and_then(|rest| rest.strip_suffix('\n'));
    assert!(port.is_some_and(|port| port.parse::<u32>().is_ok()), "the VM answers {answer:?}");
}

fn the_host_reaches_the_guest(transport: Transport) {
    let (_directory, path) = socket();
    let mut running = machine("vsock-serve", transport, &path).cmdline("connections=2").start();
    running.wait_for("listening");
    assert_eq!(answer(&connect(&path, SERVICE + 1, b"")), "", "nobody listens there");
    assert_eq!(answer(&connect(&path, SERVICE, b"")).get(..3), Some("OK "));
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"HELLO\n").unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0, "not a word that it knows");
    // What comes right behind the line, in the same write, is for the guest.
    let mut client = connect(&path, SERVICE, b"early words");
    assert_ok(&answer(&client));
    client.write_all(b", late words").unwrap();
    let mut heard = [0; 23];
    client.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"early words, late words");
    drop(client);
    let ended = running.wait();
    assert_eq!(ended.passed(&["vsock-serve"]).said("served"), "2");
    assert!(!path.exists(), "the socket is left behind");
}

fn many_at_once_are_served(transport: Transport) {
    const MANY: usize = 100;
    let (_directory, path) = socket();
    let test = machine("vsock-serve", transport, &path).cmdline(&format!("connections={MANY}"));
    let mut running = test.memory("128M").start();
    running.wait_for("listening");
    let clients: Vec<UnixStream> = (0..MANY).map(|_| connect(&path, SERVICE, b"")).collect();
    for client in &clients {
        assert_ok(&answer(client));
    }
    // All of them are open; everybody says something before anybody hears anything.
    for (seed, mut client) in (0..).zip(&clients) {
        client.write_all(&random(seed, 2000)).unwrap();
    }
    for (seed, mut client) in (0..).zip(&clients) {
        let mut heard = vec![0; 2000];
        client.read_exact(&mut heard).unwrap();
        assert!(heard == random(seed, 2000), "client {seed} hears something else");
    }
    drop(clients);
    assert_eq!(running.wait().passed(&["vsock-serve"]).said("served"), MANY.to_string());
}

fn the_guest_reaches_the_host(transport: Transport) {
    const MANY: usize = 40;
    let (_directory, path) = socket();
    let listener = listen(&path, 2000);
    let echo = thread::spawn(move || {
        let all: Vec<_> = listener.incoming().take(MANY).map(Result::unwrap).collect();
        for mut client in all {
            thread::spawn(move || {
                let mut piece = [0; 700];
                while let Ok(count @ 1..) = client.read(&mut piece) {
                    client.write_all(&piece[..count]).unwrap();
                }
            });
        }
    });
    let test = machine("vsock-connect", transport, &path).cmdline(&format!("connections={MANY}"));
    let ended = test.memory("128M").run();
    ended.passed(&["vsock-connect"]);
    assert_eq!(ended.said("cid"), "3");
    echo.join().unwrap();
}

fn much_goes_both_ways(transport: Transport) {
    const LEN: usize = 64 << 20;
    let (_directory, path) = socket();
    let listener = listen(&path, 2002);
    let host = thread::spawn(move || {
        let mut client = listener.accept().unwrap().0;
        let mut heard = vec![0; LEN];
        client.read_exact(&mut heard).unwrap();
        assert!(heard == random(1, LEN), "the guest's bytes are wrong");
        client.write_all(&random(2, LEN)).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "the guest is done");
    });
    let ended: Ended = machine("vsock-bulk", transport, &path).cmdline("mib=64").memory("128M").run();
    ended.passed(&["vsock-bulk"]);
    println!("{}", ended.stdout);
    host.join().unwrap();
}

fn one_direction_ends_and_the_other_goes_on(transport: Transport) {
    let (_directory, path) = socket();
    let listener = listen(&path, 2003);
    let host = thread::spawn(move || {
        let mut client = listener.accept().unwrap().0;
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"the guest's last word");
        client.write_all(b"the host's answer").unwrap();
    });
    let mut running = machine("vsock-half", transport, &path).start();
    running.wait_for("listening");
    host.join().unwrap();
    let client = connect(&path, SERVICE, b"the host's last word");
    client.shutdown(Shutdown::Write).unwrap();
    let mut heard = String::new();
    (&client).read_to_string(&mut heard).unwrap();
    let (line, rest) = heard.split_once('\n').unwrap();
    assert_ok(&format!("{line}\n"));
    assert_eq!(rest, "the guest's answer");
    drop(client);
    running.wait().passed(&["vsock-half"]);
}

#[test]
fn a_socket_belongs_to_one_machine() {
    let (_directory, path) = socket();
    let machine = Machine::guest("hang").flag("--vsock", &path);
    let mut first = machine.start();
    first.wait_for("hanging");
    let second = machine.run();
    assert_eq!(second.code, Some(1), "{second:#?}");
    assert!(second.stderr.contains(&format!("{} is in use", path.display())), "{second:#?}");
    // Killed: what it leaves behind is in nobody's way.
    let vm = rustix::process::Pid::from_raw(first.vm().try_into().unwrap()).unwrap();
    rustix::process::kill_process(vm, rustix::process::Signal::KILL).unwrap();
    assert_eq!(first.wait().code, Some(137));
    assert!(path.exists());
    Machine::guest("cmdline").flag("--vsock", &path).run().passed(&["cmdline"]);
    assert!(!path.exists());
}
