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
        let controller = Controller::new(messages, Arc::clone(&console), None);
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
    // Asked before the end, answered after it.
    let waiting: Vec<_> = (0..5).map(|_| vm.connect()).collect();
    for mut client in &waiting {
        client.write_all(b"\"wait\"\n").unwrap();
    }
    let client = vm.client();
    let library = std::thread::spawn(move || client.wait());
    let (viewer, typist) = (vm.client().attach(ALL).unwrap(), vm.client().attach(Attach::default()).unwrap());
    vm.print("last words");
    vm.end();
    for client in waiting {
        assert_eq!(io::read_to_string(client).unwrap(), "{\"ended\":{\"outcome\":\"powered-off\"}}\n");
    }
    // It may have come too late, and is told so.
    let library = library.join().unwrap();
    assert!(
        matches!(&library, Ok(ended) if *ended == powered_off())
            || matches!(library, Err(ClientError::Io(_)))
    );
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

#[test]
fn a_viewer_that_sends_no_more_still_sees_and_one_that_is_gone_is_forgotten() {
    let mut vm = FakeVm::start();
    let stream = vm.connect();
    let silent = Client::new(stream.try_clone().unwrap()).attach(ALL).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    drop(vm.client().attach(ALL).unwrap());
    for n in 0..1000 {
        vm.print(&format!("{n}\n"));
    }
    assert!(output_until(&silent, "\n999\n").starts_with("0\n1\n"));
    vm.end();
    assert_eq!(frame(&silent), Frame::Ended(powered_off()));
}

#[test]
fn input_frames_of_several_typists_stay_whole() {
    let mut vm = FakeVm::start();
    let typing: Vec<_> = (b'a'..b'e')
        .map(|letter| {
            let frames = vm.client().attach(Attach::default()).unwrap();
            std::thread::spawn(move || {
                for _ in 0..50 {
                    frames.write(&Frame::Input(vec![letter; 1000])).unwrap();
                }
                frames
            })
        })
        .collect();
    let frames: Vec<_> = typing.into_iter().map(|typist| typist.join().unwrap()).collect();
    let until = Instant::now() + PATIENCE;
    while vm.typed.bytes.lock().unwrap().len() < 200_000 {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(vm.typed.bytes.lock().unwrap().chunks(1000).all(|frame| frame.iter().all(|b| *b == frame[0])));
    vm.end();
    drop(frames);
}

#[test]
fn lines_that_make_no_sense_are_answered_and_the_next_one_is_served() {
    let mut vm = FakeVm::start();
    let stream = vm.connect();
    for nonsense in ["hello\n", "{\"act\":\"explode\"}\n", "[1,2\n", "\u{0}\n", "\"wait\" \"wait\"\n"] {
        let answer = ask(&stream, nonsense);
        assert!(answer.starts_with("{\"error\":\"this version of skiff does not understand"), "{answer}");
    }
    assert_eq!(ask(&stream, "\n\r\n {\"act\":\"state\"}\r\n"), r#"{"reply":{"state":"running"}}"#);
    // What goes on for ever is not gathered.
    let mut writer = &stream;
    let _ = writer.write_all(&vec![b'x'; 1 << 20]);
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).unwrap();
    assert!(answer.contains("longer than 65536 bytes"), "{answer}");
    assert!(vm.client().act(VmAction::State).is_ok());
    vm.end();
}

#[test]
fn clients_that_say_nothing_or_half_a_thing_keep_nobody_out_and_do_not_delay_the_end() {
    let mut vm = FakeVm::start();
    let silent: Vec<_> = (0..200).map(|_| vm.connect()).collect();
    for mut half in silent.iter().step_by(2) {
        // Those that came first are closed already.
        let _ = half.write_all(b"{\"act\":");
    }
    assert_eq!(vm.client().act(VmAction::State).unwrap(), VmReply::State(RunState::Running));
    let since = Instant::now();
    vm.end();
    assert!(since.elapsed() < FAREWELL, "somebody was waited for");
}

#[test]
fn beyond_what_is_served_the_reason_is_said_until_there_is_room_again() {
    let mut vm = FakeVm::start();
    let mut busy: Vec<_> = (0..MAX_CONNECTIONS).map(|_| vm.client().attach(ALL).unwrap()).collect();
    let refused = vm.client().act(VmAction::State).unwrap_err().to_string();
    assert!(refused.starts_with("64 clients are connected"), "{refused}");
    busy.pop();
    let until = Instant::now() + PATIENCE;
    while vm.client().act(VmAction::State).is_err() {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(5));
    }
    vm.end();
}

#[test]
fn a_viewer_that_reads_nothing_slows_nobody_and_delays_the_end_for_moments() {
    let mut vm = FakeVm::start();
    let stalled = vm.client().attach(ALL).unwrap();
    for _ in 0..100 {
        vm.print(&"x".repeat(32 * 1024));
    }
    vm.end();
    // Its connection has ended all the same.
    while let Ok(Some(_)) = stalled.read() {}
}

#[test]
fn frames_that_break_off_or_make_no_sense_end_their_connection_only() {
    let mut vm = FakeVm::start();
    for wire in
        [&[5_u8, 9, 0, 0, 0, b'x'][..], &[5, 0, 0, 0, 0xff], &[77, 0, 0, 0, 0], &[1, 1, 0, 0, 0, b'x']]
    {
        let stream = vm.connect();
        let frames = Client::new(stream.try_clone().unwrap()).attach(ALL).unwrap();
        let mut writer = &stream;
        writer.write_all(wire).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        // The frame that breaks off after the client has fallen silent is no reason to send nothing more.
        assert_eq!(frames.read().unwrap(), None);
    }
    vm.client().attach(ALL).unwrap().write(&Frame::Input(b"fine".to_vec())).unwrap();
    vm.wait_for_typed(b"fine");
    vm.end();
}

/// A VM with its owner's end of the connection, and the reader of its standard output.
fn owned(ends_vm: bool, takes: bool) -> (FakeVm, Frames, io::PipeReader) {
    let (ours, stream) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    let (reader, writer) = io::pipe().unwrap();
    let vm = FakeVm::with(Hub::new(Some(writer.into()), None), takes, Some(Owner { stream, ends_vm }));
    (vm, Frames::new(ours).unwrap(), reader)
}

fn read_to_end(mut stdout: io::PipeReader) -> String {
    let mut text = String::new();
    stdout.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn an_owner_types_and_hears_of_the_end() {
    let (mut vm, owner, stdout) = owned(true, true);
    owner.write(&Frame::Input(b"typed".to_vec())).unwrap();
    vm.wait_for_typed(b"typed");
    vm.print("printed");
    vm.end();
    assert_eq!(owner.read().unwrap(), Some(Frame::Ended(powered_off())));
    assert_eq!(owner.read().unwrap(), None);
    drop(vm);
    assert_eq!(read_to_end(stdout), "printed");
}

#[test]
fn an_owner_that_leaves_gets_its_standard_output_back_and_the_vm_lives_on() {
    let (mut vm, owner, stdout) = owned(true, true);
    vm.print("before");
    owner.write(&Frame::Detach).unwrap();
    assert_eq!(read_to_end(stdout), "before");
    vm.print("after");
    let viewer = vm.client().attach(ALL).unwrap();
    assert_eq!(output_until(&viewer, "after"), "beforeafter");
    vm.end();
    assert!(vm.actions.try_iter().next().is_none());
}

#[test]
fn an_owner_that_dies_takes_its_vm_along_if_that_was_the_deal() {
    for ends_vm in [true, false] {
        let (mut vm, owner, stdout) = owned(ends_vm, true);
        drop(owner);
        assert_eq!(read_to_end(stdout), "");
        if ends_vm {
            assert_eq!(vm.actions.recv_timeout(PATIENCE).unwrap(), VmAction::Kill);
        } else {
            assert!(vm.client().act(VmAction::State).is_ok());
        }
        vm.end();
    }
}

#[test]
fn an_owner_can_leave_a_guest_that_takes_no_input() {
    let (mut vm, owner, stdout) = owned(true, false);
    // As much as anybody takes, by somebody who never lets go of the key.
    let until = Instant::now() + PATIENCE;
    let mut refused = 0;
    while refused < 100 {
        assert!(Instant::now() < until, "all of it is taken");
        refused = if owner.offer(&Frame::Input(vec![b'x'; 4096])).unwrap() { 0 } else { refused + 1 };
        std::thread::sleep(Duration::from_micros(if refused > 0 { 500 } else { 0 }));
    }
    owner.write(&Frame::Detach).unwrap();
    drop(owner);
    assert_eq!(read_to_end(stdout), "");
    assert!(vm.client().act(VmAction::State).is_ok());
    vm.end();
    assert!(vm.actions.try_iter().all(|action| action != VmAction::Kill));
}
