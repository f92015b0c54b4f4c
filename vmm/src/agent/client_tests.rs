//! Requests to agents made of plain sockets.

use std::thread::JoinHandle;

use super::*;
use ::agent::message::Unpack;

const LIMIT: Duration = Duration::from_secs(10);

/// An agent that takes one request, answers so, and goes on like that.
fn agent(
    answer: Answer,
    go_on: impl FnOnce(&mut UnixStream) + Send + 'static,
) -> (Connection, JoinHandle<()>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let open: Open = Frame::read(&mut theirs).unwrap().unwrap().read_as().unwrap();
        assert_eq!(open.protocol, ::agent::PROTOCOL);
        Frame::message(&answer).unwrap().write(&mut theirs).unwrap();
        go_on(&mut theirs);
    });
    (Connection::direct(ours), thread)
}

fn exec() -> Request {
    Request::Exec(Exec { stdin: true, ..Exec::default() })
}

fn say(to: &mut UnixStream, message: &impl Serialize) {
    Frame::message(message).unwrap().write(to).unwrap();
}

#[test]
fn a_command_says_what_it_prints_and_how_it_ends() {
    let (connection, agent) = agent(Answer::Accepted { pid: Some(7), window: 0 }, |stream| {
        Frame::Output(b"out".to_vec()).write(stream).unwrap();
        Frame::Error(b"err".to_vec()).write(stream).unwrap();
        say(stream, &Ended::Signaled(9));
    });
    let mut talk = connection.ask(&exec()).unwrap();
    assert_eq!(talk.pid(), Some(7));
    assert_eq!(talk.next().unwrap(), Said::Output(b"out".to_vec()));
    assert_eq!(talk.next().unwrap(), Said::Error(b"err".to_vec()));
    assert_eq!(talk.next().unwrap(), Said::Ended(Ended::Signaled(9)));
    agent.join().unwrap();
    assert!(matches!(talk.next(), Err(AgentError::Broken(_))));
}

#[test]
fn a_signal_does_not_stand_behind_input_that_nobody_reads() {
    let (connection, agent) = agent(Answer::Accepted { pid: None, window: 100 }, |stream| {
        assert_eq!(Frame::read(stream).unwrap(), Some(Frame::Input(vec![1; 80])));
        let control: Control = Frame::read(stream).unwrap().unwrap().read_as().unwrap();
        assert_eq!(control, Control::Signal(2));
        say(stream, &Heard::Taken(80));
        assert_eq!(Frame::read(stream).unwrap(), Some(Frame::Input(vec![2; 80])));
        assert_eq!(Frame::read(stream).unwrap(), Some(Frame::InputEnd));
        say(stream, &Ended::Exited(0));
    });
    let mut talk = connection.ask(&exec()).unwrap();
    let sender = talk.sender();
    sender.input(&[1; 80]).unwrap();
    let writer = talk.sender();
    let writing = std::thread::spawn(move || {
        writer.input(&[2; 80]).unwrap();
        writer.input_end().unwrap();
    });
    sender.control(Control::Signal(2)).unwrap();
    assert_eq!(talk.next().unwrap(), Said::Ended(Ended::Exited(0)));
    writing.join().unwrap();
    agent.join().unwrap();
}

#[test]
fn an_end_wakes_who_waits_to_put_something_in() {
    let (connection, agent) = agent(Answer::Accepted { pid: None, window: 1 }, |_| {});
    let talk = connection.ask(&exec()).unwrap();
    agent.join().unwrap();
    let (sender, closer) = (talk.sender(), talk.sender());
    let writing = std::thread::spawn(move || {
        let first = sender.input(&[0]);
        first.and_then(|()| sender.input(&[0])).unwrap_err()
    });
    closer.close();
    writing.join().unwrap();
}

#[test]
fn a_refusal_says_why() {
    let refused = |why| {
        let answer = Answer::Refused { protocol: 0, version: "0.0.9".to_owned(), why };
        let (connection, agent) = agent(answer, |_| {});
        let error = connection.ask(&exec()).unwrap_err();
        agent.join().unwrap();
        error
    };
    assert!(matches!(refused(Refusal::NotFound("x".into())), AgentError::NotFound(why) if why == "x"));
    assert_eq!(refused(Refusal::Failed("a\x1b[2Jb".into())).to_string(), "a [2Jb");
    let skew = refused(Refusal::Skew).to_string();
    assert!(skew.starts_with("the agent in the guest is of skiff 0.0.9 and speaks protocol 0, "), "{skew}");
}

#[test]
fn a_guest_without_an_agent_is_told_from_one_that_hangs() {
    let run = |answer: &'static [u8], limit: Duration, stay: bool| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answer).unwrap();
        let kept = stay.then(|| theirs.try_clone().unwrap());
        // What is asked is read, so that the end is no reset.
        let reading = std::thread::spawn(move || {
            let mut line = [0; 14];
            theirs.read_exact(&mut line).unwrap();
            assert_eq!(&line, b"CONNECT 10777\n");
        });
        let result = Connection::to_guest(ours, limit).map(|_| ());
        reading.join().unwrap();
        drop(kept);
        result
    };
    run(b"OK 1073741824\n", LIMIT, false).unwrap();
    assert!(matches!(run(b"", LIMIT, false), Err(AgentError::Nobody)));
    assert!(matches!(run(b"OK 1073741824 and more\n", LIMIT, true), Err(AgentError::Broken(_))));
    assert!(matches!(run(b"OK", Duration::from_millis(20), true), Err(AgentError::Silent)));
}

#[test]
fn a_guest_that_answers_byte_by_byte_has_no_more_time() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let agent = std::thread::spawn(move || {
        theirs.write_all(b"OK 1\n").unwrap();
        // A frame that never ends; until nobody reads it any more.
        let mut bytes = Vec::new();
        Frame::message(&Answer::Accepted { pid: None, window: 0 }).unwrap().write(&mut bytes).unwrap();
        for byte in bytes.iter().take(bytes.len() - 1) {
            if theirs.write_all(&[*byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(30));
        }
        let _ = theirs.read_to_end(&mut bytes);
    });
    let connection = Connection::to_guest(ours, Duration::from_millis(200)).unwrap();
    assert!(matches!(connection.ask(&exec()), Err(AgentError::Silent)));
    agent.join().unwrap();
}

#[test]
fn a_question_that_is_not_answered_is_given_up() {
    let (connection, agent) = agent(Answer::Accepted { pid: None, window: 0 }, |stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let mut talk = connection.ask(&Request::Look { path: "/".to_owned() }).unwrap();
    assert!(matches!(talk.answer(Duration::from_millis(50)), Err(AgentError::Silent)));
    drop(talk);
    agent.join().unwrap();
}

#[test]
fn who_takes_an_archive_cannot_say_how_much_at_once() {
    let unpack = Unpack { dir: "/".to_owned(), rename: None, owner: None };
    let (connection, agent) = agent(Answer::Accepted { pid: None, window: 1 }, |stream| {
        for _ in 0..2 {
            assert_eq!(Frame::read(stream).unwrap(), Some(Frame::Input(vec![0; 9])));
        }
    });
    let talk = connection.ask(&Request::Unpack(unpack)).unwrap();
    talk.sender().input(&[0; 9]).unwrap();
    talk.sender().input(&[0; 9]).unwrap();
    agent.join().unwrap();
}
