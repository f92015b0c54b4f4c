//! A tiny guest and the built program, for tests with /dev/kvm.

#![allow(dead_code, reason = "each test program uses its part")]

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What the guest prints first.
pub const READY: &str = "R";

/// 32-bit code that prints R, then echoes what the serial port gives it; o switches the machine off (ACPI sleep
/// control), p says that the kernel panicked (pvpanic).
#[rustfmt::skip]
const GUEST: [u8; 52] = [
    0x66, 0xba, 0xf8, 0x03, //  0       mov  dx, 0x3f8
    0xb0, b'R',             //  4       mov  al, 'R'
    0xee,                   //  6       out  dx, al
    0x66, 0xba, 0xfd, 0x03, //  7 next: mov  dx, 0x3fd
    0xec,                   // 11       in   al, dx
    0xa8, 0x01,             // 12       test al, 1
    0x74, 0xf7,             // 14       jz   next
    0x66, 0xba, 0xf8, 0x03, // 16       mov  dx, 0x3f8
    0xec,                   // 20       in   al, dx
    0x3c, b'o',             // 21       cmp  al, 'o'
    0x74, 0x07,             // 23       je   off
    0x3c, b'p',             // 25       cmp  al, 'p'
    0x74, 0x0d,             // 27       je   panic
    0xee,                   // 29       out  dx, al
    0xeb, 0xe7,             // 30       jmp  next
    0x66, 0xba, 0x00, 0x06, // 32 off:  mov  dx, 0x600
    0xb0, 0x34,             // 36       mov  al, S5 << 2 | SLP_EN
    0xee,                   // 38       out  dx, al
    0xf4,                   // 39 halt: hlt
    0xeb, 0xfd,             // 40       jmp  halt
    0x66, 0xba, 0x05, 0x05, // 42 panic: mov dx, 0x505
    0xb0, 0x01,             // 46       mov  al, 1
    0xee,                   // 48       out  dx, al
    0xf4,                   // 49 halt: hlt
    0xeb, 0xfd,             // 50       jmp  halt
];

/// An ELF with [`GUEST`] at 1 MiB as its PVH entry (XEN_ELFNOTE_PHYS32_ENTRY).
fn kernel() -> Vec<u8> {
    const LOAD: u64 = 0x10_0000;
    const CODE: u64 = 0x1000;
    const NOTE: u64 = 64 + 2 * 56;
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend([2_u16, 62].into_iter().flat_map(u16::to_le_bytes));
    elf.extend(1_u32.to_le_bytes());
    elf.extend([LOAD, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    elf.extend(0_u32.to_le_bytes());
    elf.extend([64_u16, 56, 2, 64, 0, 0].into_iter().flat_map(u16::to_le_bytes));
    let len = GUEST.len() as u64;
    for (kind, flags, words) in
        [(1_u32, 5_u32, [CODE, LOAD, LOAD, len, len, 4096]), (4, 4, [NOTE, 0, 0, 20, 20, 4])]
    {
        elf.extend([kind, flags].into_iter().flat_map(u32::to_le_bytes));
        elf.extend(words.into_iter().flat_map(u64::to_le_bytes));
    }
    elf.extend([4_u32, 4, 18].into_iter().flat_map(u32::to_le_bytes));
    elf.extend(b"Xen\0");
    elf.extend((LOAD as u32).to_le_bytes());
    elf.resize(CODE as usize, 0);
    elf.extend(GUEST);
    elf
}

/// A place for VMs, with a guest for them. What still runs in it at the end is killed.
pub struct Home {
    dir: tempfile::TempDir,
    /// The guest.
    pub kernel: PathBuf,
}

/// What a command came to.
#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Home {
    /// `None` where no VM can run.
    pub fn new() -> Option<Self> {
        if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
            eprintln!("skipped: /dev/kvm: {error}");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("guest.elf");
        std::fs::write(&path, kernel()).unwrap();
        Some(Self { dir, kernel: path })
    }

    /// Where VMs are kept.
    pub fn store(&self) -> PathBuf {
        self.dir.path().join("skiff")
    }

    /// Where snapshots and layers are kept.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data/skiff")
    }

    /// skiff, with nothing said yet.
    pub fn skiff(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skiff"));
        command
            .env_remove("SKIFF_LOG")
            .env("XDG_STATE_HOME", self.dir.path())
            .env("XDG_DATA_HOME", self.dir.path().join("data"));
        command
    }

    /// `skiff run` of the guest.
    pub fn run(&self) -> Command {
        let mut command = self.skiff();
        command.args(["run", "--memory", "64M", "--kernel"]).arg(&self.kernel);
        command
    }

    /// `skiff run -d` of the guest, with these arguments. Says the name.
    pub fn detached(&self, args: &[&str]) -> String {
        let done = done(self.run().arg("-d").args(args));
        assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{done:?}");
        done.stdout.trim_end().to_owned()
    }

    /// What skiff does with `args`.
    pub fn ask(&self, args: &[&str]) -> Done {
        done(self.skiff().args(args))
    }

    /// What skiff prints when it does `args`, which must succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        let done = self.ask(args);
        assert_eq!(done.code, Some(0), "{args:?}: {done:?}");
        done.stdout
    }

    /// What `ps -a --json` says of a VM.
    pub fn ps(&self, name: &str) -> Option<serde_json::Value> {
        let all: Vec<serde_json::Value> = serde_json::from_str(&self.ok(&["ps", "-a", "--json"])).unwrap();
        all.into_iter().find(|vm| vm["name"] == name)
    }

    /// A VM's status, such as `running`.
    pub fn status(&self, name: &str) -> String {
        self.ps(name).map_or("gone".to_owned(), |vm| vm["status"].as_str().unwrap().to_owned())
    }

    /// The process of a VM.
    pub fn pid(&self, name: &str) -> i32 {
        self.ps(name).unwrap()["pid"].as_i64().unwrap().try_into().unwrap()
    }

    /// Wait until `done`.
    pub fn wait_until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < until, "{what} did not happen: {}", self.ok(&["ps", "-a"]));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // A test that failed may have left skiff on its way to a VM that is not in the store yet, and the VM would outlive the
        // test. What belongs to this place says so in its environment.
        let until = Instant::now() + PATIENCE;
        loop {
            self.remove_all();
            let left = self.processes();
            if left.is_empty() || Instant::now() > until {
                return;
            }
            for pid in left {
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Home {
    /// Whoever runs with this place's environment.
    fn processes(&self) -> Vec<Pid> {
        let mark = format!("XDG_STATE_HOME={}", self.dir.path().display());
        let belongs = |pid: &Pid| {
            let environment = std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero()));
            environment.is_ok_and(|all| all.split(|byte| *byte == 0).any(|one| one == mark.as_bytes()))
        };
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
        pids.filter(belongs).collect()
    }

    fn remove_all(&self) {
        if let Ok(names) = self.skiff().args(["ps", "-aq"]).output() {
            for name in String::from_utf8_lossy(&names.stdout).lines() {
                let _ = self.skiff().args(["rm", "-f", name]).output();
            }
        }
    }
}

/// What a command comes to, which reads nothing.
pub fn done(command: &mut Command) -> Done {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Done { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Wait for its end.
pub fn wait(child: &mut Child) -> ExitStatus {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > until {
            let _ = child.kill();
            panic!("skiff does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
