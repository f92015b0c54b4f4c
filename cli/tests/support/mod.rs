//! A tiny guest and the built program, for tests with /dev/kvm.

#![allow(dead_code, reason = "each test program uses its part")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

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

/// A kernel file in a directory that goes with it. `None` where no VM can run.
pub fn guest() -> Option<(tempfile::TempDir, PathBuf)> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        eprintln!("skipped: /dev/kvm: {error}");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("guest.elf");
    std::fs::write(&path, kernel()).unwrap();
    Some((dir, path))
}

/// `skiff run` of a guest, whose VMs are kept beside it.
pub fn run(kernel: &Path) -> Command {
    let mut command = skiff(kernel.parent().unwrap());
    command.args(["run", "--memory", "64M", "--kernel"]).arg(kernel);
    command
}

/// skiff, with its VMs kept in `state`.
pub fn skiff(state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skiff"));
    command.env_remove("SKIFF_LOG").env("XDG_STATE_HOME", state);
    command
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
