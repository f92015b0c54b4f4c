//! What a guest prints and what it is told, over standard output, the log and the control socket.

use std::io::{PipeReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};

use vmm::api::client::{Client, Frames};
use vmm::api::server::{self, Owner, Server};
use vmm::api::types::{Attach, Frame};

use super::*;

const ALL: Attach = Attach { output: true, history: true };

/// A VM that can be asked over its socket.
struct Served {
    vm: Running,
    server: Server,
    dir: tempfile::TempDir,
}

/// Start `code` with its serial port as `stdio`, and serve it.
fn serve(code: &Code, stdout: Option<std::io::PipeWriter>, owner: Option<Owner>) -> Option<Served> {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let vm = run_with(
        code,
        |spec| spec.serial = Stream::Stdio,
        |setup| {
            setup.stdout = stdout.map(Into::into);
            setup.log = Some(log);
        },
    )?;
    let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    let server = server::start(vm.controller.clone(), listener, owner).unwrap();
    Some(Served { vm, server, dir })
}

impl Served {
    fn client(&self) -> Client {
        let stream = UnixStream::connect(self.dir.path().join("socket")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client::new(stream)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Wait for the end and tell everybody.
    fn end(self) -> Outcome {
        let (outcome, _) = self.vm.end();
        self.server.finish(Ended::Outcome(outcome.clone()));
        outcome
    }
}

/// An owner, and the VM's end of the connection to it.
fn owner(ends_vm: bool) -> (Frames, Option<Owner>) {
    let (ours, stream) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    (Frames::new(ours).unwrap(), Some(Owner { stream, ends_vm }))
}

fn output(frames: &Frames, text: &str) {
    let mut all = Vec::new();
    while all.len() < text.len() {
        match frames.read().unwrap() {
            Some(Frame::Output(bytes)) => all.extend(bytes),
            other => panic!("{other:?} after {all:?}"),
        }
    }
    assert_eq!(String::from_utf8_lossy(&all), text);
}

/// How much was in the pipe when its last writer was gone.
fn rest(mut stdout: PipeReader) -> usize {
    let mut bytes = Vec::new();
    stdout.read_to_end(&mut bytes).unwrap()
}

#[test]
fn a_vm_without_a_terminal_is_watched_and_typed_at_by_several_and_keeps_a_log() {
    let code = Code::default().out(SERIAL, b'R').out(SERIAL, b'\n').echo().out(OFF.0, OFF.1).stay();
    let Some(served) = serve(&code, None, None) else { return };
    served.vm.until("it prints", || served.vm.written() >= 2);
    let (one, two) = (served.client().attach(ALL).unwrap(), served.client().attach(ALL).unwrap());
    output(&one, "R\n");
    output(&two, "R\n");
    one.write(&Frame::Input(b"hell".to_vec())).unwrap();
    output(&one, "hell");
    // An `o` switches it off.
    two.write(&Frame::Input(b" yes\n".to_vec())).unwrap();
    output(&one, " yes\n");
    output(&two, "hell yes\n");
    assert_eq!(served.client().act(VmAction::State).unwrap(), VmReply::State(RunState::Running));
    served.vm.until("the log has it", || served.log() == "R\nhell yes\n");
    two.write(&Frame::Input(b"o".to_vec())).unwrap();
    assert_eq!(served.end(), Outcome::PoweredOff);
    for frames in [one, two] {
        assert_eq!(frames.read().unwrap(), Some(Frame::Ended(Ended::Outcome(Outcome::PoweredOff))));
        assert_eq!(frames.read().unwrap(), None);
    }
}

#[test]
fn a_guest_that_waits_for_its_reader_goes_on_when_its_owner_detaches() {
    let (reader, writer) = std::io::pipe().unwrap();
    let (frames, owner) = owner(true);
    let Some(served) = serve(&printing(), Some(writer), owner) else { return };
    let stalls = || {
        let written = served.vm.written();
        std::thread::sleep(Duration::from_millis(100));
        written > 1000 && served.vm.written() == written
    };
    served.vm.until("nobody reads", stalls);
    frames.write(&Frame::Detach).unwrap();
    let printed = rest(reader) as u64;
    assert!(printed > 1000);
    served.vm.until("the guest goes on", || served.vm.written() > printed + 10_000);
    assert_eq!(served.client().act(VmAction::Kill).unwrap(), VmReply::Done);
    assert!(served.log().len() as u64 > printed);
    assert_eq!(served.end(), Outcome::Killed);
}

#[test]
fn a_guest_that_waits_for_its_reader_ends_with_its_owner() {
    let (reader, writer) = std::io::pipe().unwrap();
    let (frames, owner) = owner(true);
    let Some(served) = serve(&printing(), Some(writer), owner) else { return };
    served.vm.until("the guest prints", || served.vm.written() > 1000);
    drop(frames);
    assert_eq!(served.end(), Outcome::Killed);
    assert!(rest(reader) > 0);
}
