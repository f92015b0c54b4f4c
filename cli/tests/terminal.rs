//! `skiff run` on a terminal and on pipes, with a tiny guest on /dev/kvm: keys, signals, exit codes, and the
//! terminal given back. Without a usable /dev/kvm these tests say so and pass.

mod support;

use std::ffi::CString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};
use support::{Home, PATIENCE, READY, wait};

/// skiff on a terminal of its own, as its session's leader.
struct OnTerminal {
    child: Child,
    keyboard: File,
    /// The program's end.
    line: File,
    screen: Receiver<Vec<u8>>,
    seen: String,
    before: Termios,
    home: Home,
}

impl OnTerminal {
    fn start(args: &[&str]) -> Option<Self> {
        Self::open(Home::new()?, |home| {
            let mut command = home.run();
            command.args(args);
            command
        })
    }

    /// A terminal for a command in `home`.
    fn open(home: Home, command: impl FnOnce(&Home) -> Command) -> Option<Self> {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let name: CString = ptsname(&keyboard, Vec::new()).unwrap();
        let line = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let keyboard = File::from(keyboard);
        let before = tcgetattr(&line).unwrap();
        let end = || Stdio::from(line.try_clone().unwrap());
        let mut command = command(&home);
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: only system calls are made between fork and exec.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(std::io::stdin())?;
                Ok(())
            })
        };
        let child = command.spawn().unwrap();
        let (sender, screen) = channel();
        let mut output = keyboard.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len) = output.read(&mut buffer) {
                if sender.send(buffer[..len].to_vec()).is_err() {
                    return;
                }
            }
        });
        let mut it = Self { child, keyboard, line, screen, seen: String::new(), before, home };
        it.wait_for(READY);
        it.wait_for("Ctrl-] Ctrl-] types Ctrl-]");
        assert!(it.is_raw());
        Some(it)
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.line).unwrap().local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
    }

    fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        stat.contains(") T ")
    }

    fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Wait until `text` is on the screen.
    fn wait_for(&mut self, text: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.seen.contains(text) {
            match self.screen.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    let _ = self.child.kill();
                    panic!("no {text:?} in {:?}", self.seen);
                }
            }
        }
    }

    fn wait_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < until, "{what} did not happen; {:?}", self.seen);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Wait for the end, and check that the terminal is as it was. Says the exit code.
    fn end(self) -> i32 {
        self.end_at_home().0
    }

    /// The same, and what is left at home.
    fn end_at_home(mut self) -> (i32, Home) {
        let status = wait(&mut self.child);
        let after = tcgetattr(&self.line).unwrap();
        assert_eq!(after.local_modes, self.before.local_modes);
        assert_eq!(after.input_modes, self.before.input_modes);
        assert_eq!(after.output_modes, self.before.output_modes);
        let code = status.code().unwrap_or_else(|| panic!("skiff died: {status}; {:?}", self.seen));
        (code, self.home)
    }
}

#[test]
fn keys_reach_the_guest_and_power_off_is_success() {
    let Some(mut skiff) = OnTerminal::start(&[]) else { return };
    skiff.press(b"ab\x03\x1a\x1d\x1dc");
    skiff.wait_for("ab\x03\x1a\x1dc");
    skiff.press(b"o");
    assert_eq!(skiff.end(), 0);
}

#[test]
fn the_escape_leaves() {
    let Some(mut skiff) = OnTerminal::start(&[]) else { return };
    skiff.press(b"\x1d");
    skiff.press(b"q");
    assert_eq!(skiff.end(), 0);
}

#[test]
fn signals_end_the_vm_and_give_the_terminal_back() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::QUIT, 131)] {
        let Some(skiff) = OnTerminal::start(&[]) else { return };
        skiff.signal(signal);
        let (ended, home) = skiff.end_at_home();
        assert_eq!((ended, home.ok(&["ps", "-aq"]).as_str()), (code, ""));
    }
}

#[test]
fn the_vm_survives_its_terminal_and_can_be_joined_from_another() {
    let Some(skiff) = OnTerminal::start(&[]) else { return };
    skiff.signal(Signal::HUP);
    let (code, home) = skiff.end_at_home();
    assert_eq!(code, 129);
    let name = home.ok(&["ps", "-q"]).trim_end().to_owned();
    assert_eq!(home.status(&name), "running");
    let Some(mut skiff) = OnTerminal::open(home, |home| {
        let mut command = home.skiff();
        command.args(["attach", &name]);
        command
    }) else {
        return;
    };
    skiff.press(b"xyz");
    skiff.wait_for("xyz");
    skiff.press(b"o");
    let (code, home) = skiff.end_at_home();
    assert_eq!((code, home.status(&name).as_str()), (0, "gone"));
}

#[test]
fn a_closed_terminal_leaves_the_vm_running() {
    let Some(OnTerminal { mut child, keyboard, line, home, screen, .. }) =
        OnTerminal::start(&["--name", "a"])
    else {
        return;
    };
    drop((keyboard, line));
    // The thread that reads the screen has the last descriptor of the user's end.
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    drop(screen);
    assert_eq!(wait(&mut child).code(), Some(129));
    assert_eq!(home.status("a"), "running");
    assert_eq!(home.ok(&["kill", "a"]), "a\n");
}

#[test]
fn the_escape_detaches_and_several_can_watch() {
    let Some(mut skiff) = OnTerminal::start(&["--name", "a"]) else { return };
    skiff.press(b"abc\x1dd");
    skiff.wait_for("detached from a; skiff attach a joins it again");
    let (code, home) = skiff.end_at_home();
    assert_eq!(code, 0);
    let attach = |home: &Home| {
        let mut command = home.skiff();
        command.args(["attach", "a"]);
        command
    };
    let mut command = attach(&home);
    let Some(mut skiff) = OnTerminal::open(home, attach) else { return };
    let mut other = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    skiff.wait_for("Rabc");
    skiff.press(b"xyz");
    skiff.wait_for("xyz");
    skiff.press(b"\x1dq");
    let (code, home) = skiff.end_at_home();
    assert_eq!((code, home.status("a").as_str()), (0, "running"));
    home.ok(&["kill", "a"]);
    assert_eq!(wait(&mut other).code(), Some(137));
    let mut seen = String::new();
    other.stdout.take().unwrap().read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "Rabcxyz");
}

#[test]
fn a_stopped_program_gives_the_terminal_back_for_the_while() {
    let Some(mut skiff) = OnTerminal::start(&[]) else { return };
    skiff.signal(Signal::TSTP);
    // As a shell does: a SIGCONT that comes before the stop would be lost.
    skiff.wait_until("a stop", OnTerminal::is_stopped);
    assert!(!skiff.is_raw());
    skiff.signal(Signal::CONT);
    skiff.wait_until("raw", OnTerminal::is_raw);
    skiff.press(b"xyz");
    skiff.wait_for("xyz");
    skiff.press(b"o");
    assert_eq!(skiff.end(), 0);
}

#[test]
fn a_guest_that_panics_has_its_own_exit_code_and_its_last_lines_are_shown() {
    let Some(mut skiff) = OnTerminal::start(&[]) else { return };
    skiff.press(b"BUG!\np");
    skiff.wait_for("skiff: the guest's kernel panicked; its last lines:\r\nRBUG!\r\n");
    assert_eq!(skiff.end(), 3);
}

#[test]
fn log_lines_stay_out_of_the_guests_terminal() {
    let Some(mut skiff) = OnTerminal::start(&["--verbose", "--verbose", "--verbose"]) else { return };
    skiff.wait_for("skiff: the guest has this terminal, log lines go to ");
    skiff.press(b"xyz");
    skiff.wait_for("xyz");
    skiff.press(b"o");
    for level in ["INFO", "DEBUG", "TRACE"] {
        assert!(!skiff.seen.contains(level), "{:?}", skiff.seen);
    }
    assert_eq!(skiff.end(), 0);
}

#[test]
fn a_pipe_feeds_the_guest_and_has_no_escape() {
    let Some(home) = Home::new() else { return };
    let mut child = home.run().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"a\x1dqo").unwrap();
    let status = wait(&mut child);
    let mut output = String::new();
    child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert_eq!((status.code(), output.as_str()), (Some(0), "Ra\x1dq"));
}

#[test]
fn a_reader_that_leaves_does_not_end_the_vm() {
    let Some(home) = Home::new() else { return };
    let mut child = home.run().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    child.stdin.take().unwrap().write_all(b"aaaaaaaaaaaaaaaao").unwrap();
    assert_eq!(wait(&mut child).code(), Some(0));
}
