//! Commands through a running agent.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::support::{Agent, control, finish, input, shell, until};
use agent::frame::{Frame, MAX_FRAME};
use agent::message::{Control, Ended, Exec, Heard, Open, Refusal, Request, Terminal};
use sha2::{Digest as _, Sha256};

const BIG: usize = 100 << 20;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn every_exit_code_arrives() {
    let agent = Agent::start();
    for code in 0..=255 {
        assert_eq!(agent.sh(&format!("exit {code}")).ended, Ended::Exited(code));
    }
}

#[test]
fn a_command_that_is_killed_says_by_what() {
    let agent = Agent::start();
    for signal in [1, 2, 9, 15] {
        assert_eq!(agent.sh(&format!("kill -{signal} $$")).ended, Ended::Signaled(signal));
    }
}

#[test]
fn output_and_error_are_kept_apart_and_whole() {
    let done = Agent::start().sh("echo out; echo err >&2; seq 20000 | tail -n 1");
    assert_eq!((done.output.as_str(), done.error.as_str()), ("out\n20000\n", "err\n"));
}

#[test]
fn signals_reach_the_whole_group() {
    let agent = Agent::start();
    let mut stream = agent.exec(shell("sleep 1000 & echo ready; wait"));
    until(&mut stream, "ready");
    control(&stream, Control::Signal(99));
    control(&stream, Control::Signal(15));
    assert_eq!(finish(stream).ended, Ended::Signaled(15));
    let mut stream =
        agent.exec(shell("trap 'echo got; exit 7' USR1; echo ready; while :; do sleep 0.01; done"));
    until(&mut stream, "ready");
    control(&stream, Control::Signal(10));
    let done = finish(stream);
    assert_eq!((done.output.as_str(), done.ended), ("got\n", Ended::Exited(7)));
}

#[test]
fn a_command_starts_as_a_login_does() {
    let agent = Agent::start();
    let exec = Exec {
        env: vec!["A=b c".into(), "LANG=xx".into()],
        cwd: Some("/tmp".into()),
        user: Some(format!("{}", rustix::process::geteuid().as_raw())),
        ..shell("echo \"$A|$LANG|$(pwd)|$(id -u)|${HOME:+home}|${PATH:+path}\"; cat /proc/self/oom_score_adj")
    };
    let uid = rustix::process::geteuid().as_raw();
    assert_eq!(finish(agent.exec(exec)).output, format!("b c|xx|/tmp|{uid}|home|path\n0\n"));
}

#[test]
fn another_user_has_its_own_groups_and_nothing_of_root() {
    if !is_root() {
        return eprintln!("skipped: only root can become another user");
    }
    let agent = Agent::start();
    let run = |user: &str| {
        finish(
            agent
                .exec(Exec { user: Some(user.into()), ..shell("id -u; id -g; id -G; pwd; cat /etc/shadow") }),
        )
    };
    let done = run("12345:54321");
    assert_eq!(done.output, "12345\n54321\n54321\n/\n");
    assert!(done.error.contains("denied"), "{}", done.error);
    let done = run("12345");
    assert_eq!(done.output, "12345\n0\n0\n/\n");
}

#[test]
fn what_cannot_run_is_refused_before_it_runs() {
    let agent = Agent::start();
    let exec = |program: &str| {
        Request::Exec(Exec { argv: vec![program.into()], cwd: Some("/".into()), ..Exec::default() })
    };
    assert!(matches!(agent.refused(&exec("no-such-command")), Refusal::NotFound(_)));
    assert!(matches!(agent.refused(&exec("/no/such/command")), Refusal::NotFound(_)));
    assert!(matches!(agent.refused(&exec("/etc/passwd")), Refusal::NotExecutable(_)));
    assert!(matches!(agent.refused(&exec("/etc")), Refusal::NotExecutable(_)));
    let cwd = Request::Exec(Exec { cwd: Some("/no/such/dir".into()), ..shell("true") });
    assert!(matches!(agent.refused(&cwd), Refusal::Failed(why) if why.contains("/no/such/dir")));
    let user = Request::Exec(Exec { user: Some("nobody-at-all".into()), ..shell("true") });
    assert!(matches!(agent.refused(&user), Refusal::Failed(why) if why.contains("nobody-at-all")));
}

#[test]
fn input_goes_in_whole_and_its_end_is_seen() {
    let agent = Agent::start();
    let stream = agent.exec(Exec { stdin: true, ..shell("sha256sum") });
    let mut hash = Sha256::new();
    let mut piece: Vec<u8> = (0..MAX_FRAME).map(|at| (at % 251) as u8).collect();
    for round in 0..BIG / MAX_FRAME {
        piece[0] = round as u8;
        hash.update(&piece);
        input(&stream, &piece);
    }
    Frame::InputEnd.write(&mut &stream).unwrap();
    let sum: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(finish(stream).output.starts_with(&sum));
}

#[test]
fn output_comes_out_whole_however_slowly_it_is_read() {
    let agent = Agent::start();
    let script = format!("head -c {BIG} /dev/urandom | tee /dev/fd/2 | sha256sum > sum");
    let mut stream = agent.exec(Exec { cwd: Some(agent.path("").display().to_string()), ..shell(&script) });
    let mut hash = Sha256::new();
    thread::sleep(Duration::from_millis(200));
    loop {
        match Frame::read(&mut stream).unwrap().unwrap() {
            Frame::Error(bytes) => hash.update(&bytes),
            frame => {
                assert_eq!(frame.read_as::<Ended>().unwrap(), Ended::Exited(0));
                break;
            }
        }
    }
    let sum: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(std::fs::read_to_string(agent.path("sum")).unwrap().starts_with(&sum));
}

#[test]
fn what_a_command_has_taken_is_told_to_the_byte() {
    let agent = Agent::start();
    let mut stream = agent.exec(Exec { stdin: true, ..shell("head -c 100000 | wc -c; sleep 0.2") });
    (0..4).for_each(|_| input(&stream, &[0; MAX_FRAME]));
    Frame::InputEnd.write(&mut &stream).unwrap();
    let mut taken = 0;
    loop {
        match Frame::read(&mut stream).unwrap().unwrap() {
            Frame::Message(bytes) => match serde_json::from_slice(&bytes).unwrap() {
                Heard::Taken(count) => taken += count,
                Heard::Ended(ended) => break assert_eq!(ended, Ended::Exited(0)),
            },
            frame => assert_eq!(frame, Frame::Output(b"100000\n".to_vec())),
        }
    }
    assert_eq!(taken, 4 * MAX_FRAME as u64);
}

#[test]
fn a_command_that_does_not_read_still_gets_signals() {
    let agent = Agent::start();
    let stream = agent.exec(Exec { stdin: true, ..shell("exec sleep 1000") });
    for _ in 0..8 {
        input(&stream, &[0; MAX_FRAME]);
    }
    control(&stream, Control::Signal(15));
    assert_eq!(finish(stream).ended, Ended::Signaled(15));
}

#[test]
fn input_that_nobody_wants_is_no_obstacle() {
    let agent = Agent::start();
    for stdin in [true, false] {
        let stream = agent.exec(Exec { stdin, ..shell("exec 0<&-; sleep 0.2; exit 3") });
        for _ in 0..64 {
            input(&stream, &[0; MAX_FRAME]);
        }
        assert_eq!(finish(stream).ended, Ended::Exited(3));
    }
}

fn terminal(script: &str) -> Exec {
    let size = Terminal { term: "vt100".into(), rows: 24, columns: 80 };
    Exec { terminal: Some(size), stdin: true, ..shell(script) }
}

#[test]
fn a_terminal_has_its_size_and_changes_it() {
    let agent = Agent::start();
    let mut stream = agent.exec(terminal(
        "trap 'stty size; exit 5' WINCH; tty; echo $TERM; stty size; while :; do sleep 0.01; done",
    ));
    let seen = until(&mut stream, "24 80");
    assert!(seen.contains("/dev/pts/") && seen.contains("vt100"), "{seen}");
    control(&stream, Control::Resize { rows: 50, columns: 132 });
    let done = finish(stream);
    assert_eq!((done.output.as_str(), done.ended), ("50 132\r\n", Ended::Exited(5)));
}

#[test]
fn ctrl_c_interrupts_and_ctrl_d_ends() {
    let agent = Agent::start();
    let mut stream = agent.exec(terminal("echo ready; exec sleep 1000"));
    until(&mut stream, "ready");
    input(&stream, &[3]);
    assert_eq!(finish(stream).ended, Ended::Signaled(2));
    let mut stream = agent.exec(terminal("echo ready; exec cat"));
    until(&mut stream, "ready");
    input(&stream, b"hello\n");
    until(&mut stream, "hello\r\nhello");
    Frame::InputEnd.write(&mut &stream).unwrap();
    assert_eq!(finish(stream).ended, Ended::Exited(0));
}

#[test]
fn children_that_stay_behind_do_not_hold_the_command_up() {
    let agent = Agent::start();
    let done = agent.sh("sleep 1000 & echo $!");
    assert_eq!(done.ended, Ended::Exited(0));
    agent.sh(&format!("kill {}", done.output));
}

#[test]
fn leaving_hangs_the_command_up_and_detached_ones_stay() {
    let agent = Agent::start();
    let mut stream = agent.exec(shell("sleep 1000 & echo $$; wait"));
    let pid = until(&mut stream, "\n").trim().to_owned();
    drop(stream);
    while Path::new("/proc").join(&pid).exists() {
        thread::sleep(Duration::from_millis(5));
    }
    let file = agent.path("done");
    let script = format!("sleep 0.3; echo yes > {}", file.display());
    drop(agent.exec(Exec { detach: true, ..shell(&script) }));
    while std::fs::read_to_string(&file).unwrap_or_default() != "yes\n" {
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn fifty_commands_run_at_once() {
    let agent = Agent::start();
    let streams: Vec<UnixStream> = (0..50)
        .map(|at| agent.exec(Exec { stdin: true, ..shell(&format!("read x; echo $x; exit {at}")) }))
        .collect();
    for (at, stream) in streams.into_iter().enumerate().rev() {
        input(&stream, format!("{at}\n").as_bytes());
        let done = finish(stream);
        assert_eq!((done.output, done.ended), (format!("{at}\n"), Ended::Exited(at as i32)));
    }
}

#[test]
fn nonsense_ends_its_connection_and_nothing_else() {
    let mut agent = Agent::start();
    for bytes in
        [&b""[..], b"GET / HTTP/1.0\r\n\r\n", &[0, 255, 255, 255, 255], &[0, 2, 0, 0, 0, b'{'], &[7; 4096]]
    {
        agent.connect().unwrap().write_all(bytes).unwrap();
    }
    let mut running = agent.exec(shell("echo ready; exec sleep 1000"));
    until(&mut running, "ready");
    running.write_all(&[9; 64]).unwrap();
    drop(Frame::read(&mut running));
    for open in [
        Open { protocol: 99, version: "9.9".into(), request: serde_json::Value::Null },
        Open { protocol: agent::PROTOCOL, version: "9.9".into(), request: serde_json::json!({ "fly": 1 }) },
    ] {
        let mut stream = agent.connect().unwrap();
        Frame::message(&open).unwrap().write(&mut stream).unwrap();
        let answer = Frame::read(&mut stream).unwrap().unwrap().read_as().unwrap();
        assert!(matches!(answer, agent::message::Answer::Refused { why: Refusal::Skew, .. }), "{answer:?}");
    }
    assert_eq!(agent.sh("exit 4").ended, Ended::Exited(4));
    assert!(agent.is_alive());
}
