//! A VM in a test: the built `skiff run` as a child process, with a time limit.
//!
//! ```no_run
//! use skiff_tests::machine::{Machine, Transport};
//! Machine::guest("block").transport(Transport::Pci).disk("path=disk.img").run().passed(&["block"]);
//! ```

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long a bare-metal guest may take. They need milliseconds; a busy machine, or one in software emulation, takes longer.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// The transport of a test's devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// virtio over PCI.
    Pci,
    /// virtio over MMIO.
    Mmio,
}

/// Whether guests on this machine see the CPUID of the host's processor: a KVM in software cannot intercept the instruction on a processor
/// that has no CPUID faulting.
#[must_use]
pub fn cpuid_is_the_hosts() -> bool {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Path::new("/sys/module/kvm_pvm").exists() && !cpuinfo.contains(" cpuid_fault")
}

/// A machine that has not been started.
#[derive(Clone, Debug)]
pub struct Machine {
    kernel: &'static str,
    cmdline: String,
    cpus: u32,
    memory: String,
    serial: OsString,
    console: OsString,
    arguments: Vec<OsString>,
    answer: Option<(String, String)>,
    file_size: Option<u64>,
    limit: Duration,
}

/// A machine that has ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code of `skiff run`; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

/// The target directory of this build: the test's own program is in `<target>/<profile>/deps`.
fn target() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    program.ancestors().nth(3).map(Path::to_path_buf).unwrap_or_default()
}

/// The built `skiff`: `SKIFF_BIN`, or the one of this profile.
///
/// # Panics
/// If it is not there.
#[must_use]
pub fn skiff() -> PathBuf {
    let built = || {
        let program = std::env::current_exe().unwrap_or_default();
        program.ancestors().nth(2).unwrap_or(Path::new("")).join("skiff")
    };
    let path = std::env::var_os("SKIFF_BIN").map_or_else(built, PathBuf::from);
    assert!(
        path.exists(),
        "no {}: build it with `cargo build -p skiff`, or run `cargo xtask test`",
        path.display()
    );
    path
}

/// A built bare-metal guest.
///
/// # Panics
/// If it is not there.
#[must_use]
pub fn guest(name: &str) -> PathBuf {
    let directory = std::env::var_os("SKIFF_GUESTS").map_or_else(|| target().join("guests"), PathBuf::from);
    let path = directory.join(name);
    assert!(path.exists(), "no {}: `cargo xtask test` builds the bare-metal guests", path.display());
    path
}

impl Machine {
    /// A machine for the bare-metal guest that runs the tests with these names (several with commas): one processor, 64 MiB,
    /// serial port on standard output.
    #[must_use]
    pub fn guest(tests: &str) -> Self {
        Self {
            kernel: "testguest",
            cmdline: format!("test={tests}"),
            cpus: 1,
            memory: "64M".to_owned(),
            serial: "stdio".into(),
            console: "null".into(),
            arguments: Vec::new(),
            answer: None,
            file_size: None,
            limit: TIME_LIMIT,
        }
    }

    /// Another bare-metal guest.
    #[must_use]
    pub fn kernel(mut self, name: &'static str) -> Self {
        self.kernel = name;
        self
    }

    /// Add to the command line.
    #[must_use]
    pub fn cmdline(mut self, words: &str) -> Self {
        self.cmdline = format!("{} {words}", self.cmdline);
        self
    }

    /// How many processors.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// How much memory, as the flag takes it.
    #[must_use]
    pub fn memory(mut self, memory: &str) -> Self {
        memory.clone_into(&mut self.memory);
        self
    }

    /// The devices' transport.
    #[must_use]
    pub fn transport(self, transport: Transport) -> Self {
        let name = match transport {
            Transport::Pci => "pci",
            Transport::Mmio => "mmio",
        };
        self.flag("--transport", name)
    }

    /// A disk, as the flag takes it.
    #[must_use]
    pub fn disk(self, disk: impl Into<OsString>) -> Self {
        self.flag("--disk", disk)
    }

    /// Where the serial port goes.
    #[must_use]
    pub fn serial(mut self, stream: impl Into<OsString>) -> Self {
        self.serial = stream.into();
        self
    }

    /// Where the virtio console goes.
    #[must_use]
    pub fn console(mut self, stream: impl Into<OsString>) -> Self {
        self.console = stream.into();
        self
    }

    /// Any other flag.
    #[must_use]
    pub fn flag(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.arguments.extend([name.into(), value.into()]);
        self
    }

    /// When `prompt` appears on standard output, write `text` to standard input.
    #[must_use]
    pub fn answer(mut self, prompt: &str, text: &str) -> Self {
        self.answer = Some((prompt.to_owned(), text.to_owned()));
        self
    }

    /// No file can be written beyond this many bytes, as on a host whose file system is full.
    #[must_use]
    pub fn file_size(mut self, bytes: u64) -> Self {
        self.file_size = Some(bytes);
        self
    }

    /// Another time limit.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The command that runs the machine.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(skiff());
        // A user's own VMs are not to be seen among them.
        let home = std::env::temp_dir().join("skiff-tests");
        command.env("XDG_STATE_HOME", &home).env("XDG_DATA_HOME", &home);
        command.args(["run", "--kernel"]).arg(guest(self.kernel));
        command.arg("--cmdline").arg(&self.cmdline);
        command.arg("--cpus").arg(self.cpus.to_string());
        command.arg("--memory").arg(&self.memory);
        command.arg("--serial").arg(&self.serial).arg("--console").arg(&self.console);
        command.args(&self.arguments);
        let stdin = if self.answer.is_some() { Stdio::piped() } else { Stdio::null() };
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(bytes) = self.file_size {
            limit_file_size(&mut command, bytes);
        }
        command
    }

    /// Run it to its end.
    ///
    /// # Panics
    /// If `/dev/kvm` cannot be used, the program cannot be started, or the time limit passes.
    #[must_use]
    pub fn run(&self) -> Ended {
        self.start().wait()
    }

    /// Start it.
    ///
    /// # Panics
    /// As [`Machine::run`].
    #[must_use]
    pub fn start(&self) -> Running {
        need_kvm();
        let mut child = self.command().spawn().expect("skiff cannot be started");
        let stdin = child.stdin.take();
        let stdout = collect(child.stdout.take(), self.answer.clone(), stdin);
        let stderr = collect(child.stderr.take(), None, None);
        Running {
            child,
            stdout,
            stderr,
            started: Instant::now(),
            limit: self.limit,
            text: Default::default(),
        }
    }
}

fn limit_file_size(command: &mut Command, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    let set = move || {
        // SAFETY: `limit` outlives the call.
        match unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: setrlimit is one system call, which may be made between fork and exec.
    unsafe { command.pre_exec(set) };
}

fn need_kvm() {
    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    if let Err(error) = kvm {
        panic!("bare-metal guests need /dev/kvm, which cannot be opened: {error}");
    }
}

/// Read a stream to its end in a thread of its own, handing on what comes, and answering once.
fn collect(
    stream: Option<impl Read + Send + 'static>,
    mut answer: Option<(String, String)>,
    mut stdin: Option<ChildStdin>,
) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let Some(mut stream) = stream else { return };
        let mut seen = String::new();
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut bytes) {
            seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
            if let (Some((prompt, text)), Some(stdin)) = (&answer, &mut stdin)
                && seen.contains(prompt.as_str())
            {
                // A machine that has ended shows in what it said.
                let _ = stdin.write_all(text.as_bytes());
                answer = None;
            }
            if sender.send(bytes[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// A machine that runs. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: Receiver<Vec<u8>>,
    stderr: Receiver<Vec<u8>>,
    started: Instant,
    limit: Duration,
    /// What was read so far of standard output.
    text: Vec<u8>,
}

impl Running {
    /// The process that stands in the foreground for it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process that is the VM.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn vm(&self) -> u32 {
        let front = self.pid();
        let path = format!("/proc/{front}/task/{front}/children");
        let children = std::fs::read_to_string(&path).unwrap_or_default();
        let vm = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
        vm.unwrap_or_else(|| panic!("{path} names no process of a VM: {children:?}"))
    }

    /// Wait until `text` has appeared on standard output.
    ///
    /// # Panics
    /// If it ends or the time limit passes before.
    pub fn wait_for(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.text).contains(text) {
            match self.stdout.recv_timeout(self.left()) {
                Ok(bytes) => self.text.extend(bytes),
                Err(error) => self.fail(&format!("'{text}' did not appear ({error})")),
            }
        }
    }

    fn left(&self) -> Duration {
        self.limit.saturating_sub(self.started.elapsed())
    }

    /// Wait for its end.
    ///
    /// # Panics
    /// If the time limit passes.
    #[must_use]
    pub fn wait(mut self) -> Ended {
        loop {
            match self.stdout.recv_timeout(self.left()) {
                Ok(bytes) => self.text.extend(bytes),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => self.fail("the time limit passed"),
            }
        }
        // Its output is closed: it is over, or about to be.
        let status = loop {
            match self.child.try_wait().expect("the child is ours") {
                Some(status) => break status,
                None if self.left().is_zero() => self.fail("its output is closed, yet it does not end"),
                None => thread::sleep(Duration::from_micros(200)),
            }
        };
        let took = self.started.elapsed();
        let stderr: Vec<u8> = self.stderr.iter().flatten().collect();
        Ended { code: status.code(), stdout: clean(&self.text), stderr: clean(&stderr), took }
    }

    fn fail(&mut self, why: &str) -> ! {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let stderr: Vec<u8> = self.stderr.iter().flatten().collect();
        self.text.extend(self.stdout.iter().flatten());
        panic!("{why}\n--- stdout\n{}\n--- stderr\n{}", clean(&self.text), clean(&stderr));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn clean(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\r', "")
}

impl Ended {
    /// The machine was switched off by its guest, and each of these tests passed.
    ///
    /// # Panics
    /// If not.
    pub fn passed(&self, tests: &[&str]) -> &Self {
        assert_eq!(self.code, Some(0), "the exit code is wrong: {self:#?}");
        let lines: Vec<&str> = self.stdout.lines().collect();
        for test in tests {
            assert!(lines.contains(&format!("ok {test}").as_str()), "{test} did not pass: {self:#?}");
        }
        assert!(!self.stdout.contains("FAIL"), "{self:#?}");
        assert_eq!(lines.last(), Some(&"done"), "{self:#?}");
        self
    }

    /// What follows `word` and a blank on the first line that begins so.
    ///
    /// # Panics
    /// If there is no such line.
    #[must_use]
    pub fn said(&self, word: &str) -> &str {
        let line = self.stdout.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no line begins with '{word}': {self:#?}"))
    }

    /// What follows `word` and a blank on each line that begins so.
    pub fn all<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a str> {
        self.stdout.lines().filter_map(move |line| line.strip_prefix(word)?.strip_prefix(' '))
    }
}
