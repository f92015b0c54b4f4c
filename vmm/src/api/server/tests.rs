use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Instant;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::api::client::{Client, ClientError, Frames};
use crate::api::types::{Attach, Frame};
use crate::console::{Console, Hub, InputPort, Output, Pace, Sink};
use crate::control::{Outcome, Request, RunState, VmAction, VmReply};
use crate::event::Message;

const PATIENCE: Duration = Duration::from_secs(20);
const ALL: Attach = Attach { output: true, history: true };

/// A VM without a guest: it answers, can be printed for, and keeps what is typed.
struct FakeVm {
    console: Arc<Console>,
    output: Output,
    typed: Arc<Typed>,
    actions: mpsc::Receiver<VmAction>,
    server: Option<Server>,
    dir: tempfile::TempDir,
}

/// A device that takes input at once, or never.
struct Typed {
    bytes: Mutex<Vec<u8>>,
    takes: bool,
    room: EventFd,
}

impl InputPort for Typed {
    fn push(&self, bytes: &[u8]) -> usize {
        if !self.takes {
            return 0;
        }
        self.bytes.lock().unwrap().extend(bytes);
        bytes.len()
    }

    fn room(&self) -> &EventFd {
        &self.room
    }
}

/// What the `vmm` thread does.
fn serve_actions(inbox: &mpsc::Receiver<Message>, told: &mpsc::Sender<VmAction>) {
    for message in inbox {
        let Message::Request(Request { action, reply }) = message else { continue };
        let answer = match action {
            VmAction::State => VmReply::State(RunState::Running),
            VmAction::Pause => VmReply::Refused("not today".to_owned()),
            _ => VmReply::Done,
        };
        let _ = reply.send(answer);
        let ends = action == VmAction::Kill;
        let _ = told.send(action);
        if ends {
            return;
        }
    }
}

impl FakeVm {
    fn start() -> Self {
        Self::with(Hub::default(), true, None)
    }

    fn with(hub: Hub, takes: bool, owner: Option<Owner>) -> Self {
        let console = Arc::new(Console::new(hub, true));
        let room = EventFd::new(EFD_NONBLOCK).unwrap();
        let typed = Arc::new(Typed { bytes: Mutex::default(), takes, room });
        console.connect(Some(typed.clone()));
        let (messages, inbox) = mpsc::channel();
        let (told, actions) = mpsc::channel();
        std::thread::spawn(move || serve_actions(&inbox, &told));
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let controller = Controller::new(messages, Arc::clone(&console));
        let server = Some(start(controller, listener, owner).unwrap());
        let output = console.output(&Sink::Stdio, Pace::Pieces).unwrap();
        Self { console, output, typed, actions, server, dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn client(&self) -> Client {
        Client::new(self.connect())
    }

    fn print(&mut self, text: &str) {
        self.output.write_all(text.as_bytes()).unwrap();
    }

    fn wait_for_typed(&self, text: &[u8]) {
        let until = Instant::now() + PATIENCE;
        while *self.typed.bytes.lock().unwrap() != text {
            assert!(Instant::now() < until, "{:?}", self.typed.bytes.lock().unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(&mut self) {
        self.console.end();
        self.server.take().unwrap().finish(powered_off());
    }
}

fn powered_off() -> Ended {
    Ended::Outcome(Outcome::PoweredOff)
}

fn frame(frames: &Frames) -> Frame {
    frames.read().unwrap().expect("a frame")
}

/// Everything that is printed up to `last`, which ends it.
fn output_until(frames: &Frames, last: &str) -> String {
    let mut all = String::new();
    while !all.ends_with(last) {
        match frame(frames) {
            Frame::Output(bytes) => all.push_str(std::str::from_utf8(&bytes).unwrap()),
            other => panic!("{other:?} after {all:?}"),
        }
    }
    all
}

/// One line in, one line out, as by hand.
fn ask(stream: &UnixStream, line: &str) -> String {
    let mut writer = stream;
    writer.write_all(line.as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer.trim_end().to_owned()
}

#[test]
fn actions_are_answered_one_after_the_other() {
    let mut vm = FakeVm::start();
    let mut client = vm.client();
    assert_eq!(client.act(VmAction::State).unwrap(), VmReply::State(RunState::Running));
    assert_eq!(client.act(VmAction::PressPowerButton).unwrap(), VmReply::Done);
    let refused = client.act(VmAction::Pause).unwrap_err();
    assert!(matches!(&refused, ClientError::Refused(why) if why == "not today"), "{refused:?}");
    assert_eq!(client.act(VmAction::Kill).unwrap(), VmReply::Done);
    // Between its last action and the end of its process.
    assert_eq!(client.act(VmAction::State).unwrap(), VmReply::Ended);
    vm.end();
    assert!(matches!(client.act(VmAction::State), Err(ClientError::Io(_))));
}

#[test]
fn everybody_who_waits_hears_of_the_end() {
    let mut vm = FakeVm::start();
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let client = vm.client();
            std::thread::spawn(move || client.wait().unwrap())
        })
        .collect();
    let (viewer, typist) = (vm.client().attach(ALL).unwrap(), vm.client().attach(Attach::default()).unwrap());
    vm.print("last words");
    vm.end();
    for client in waiting {
        assert_eq!(client.join().unwrap(), powered_off());
    }
    assert_eq!(frame(&viewer), Frame::Output(b"last words".to_vec()));
    for frames in [viewer, typist] {
        assert_eq!(frame(&frames), Frame::Ended(powered_off()));
        assert_eq!(frames.read().unwrap(), None);
    }
}

#[test]
fn viewers_see_what_was_and_what_comes_and_type() {
    let mut vm = FakeVm::start();
    vm.print("before\n");
    let (one, two) = (vm.client().attach(ALL).unwrap(), vm.client().attach(ALL).unwrap());
    let live = vm.client().attach(Attach { output: true, history: false }).unwrap();
    assert_eq!(output_until(&one, "before\n"), "before\n");
    assert_eq!(output_until(&two, "before\n"), "before\n");
    vm.print("after\n");
    for frames in [&one, &two, &live] {
        assert_eq!(output_until(frames, "after\n"), "after\n");
    }
    live.write(&Frame::Input(b"x".to_vec())).unwrap();
    vm.wait_for_typed(b"x");
    one.write(&Frame::Detach).unwrap();
    assert_eq!(one.read().unwrap(), None);
    two.write(&Frame::Resize { columns: 80, rows: 24 }).unwrap();
    let resized = vm.actions.recv_timeout(PATIENCE).unwrap();
    assert_eq!(resized, VmAction::ResizeConsole { columns: 80, rows: 24 });
    vm.end();
}
