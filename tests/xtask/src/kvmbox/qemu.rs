//! The QEMU process behind a box: its arguments, its start, its certain end.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{PidfdFlags, Signal, pidfd_open};

use super::Options;
use super::image::Image;
use crate::paths;

const PROGRAM: &str = "qemu-system-x86_64";
/// Kernel logs of boxes that are kept for a look afterwards.
const LOGS_KEPT: usize = 20;

/// A running QEMU. Dropping it kills the process and waits for its end.
pub struct Qemu {
    child: Child,
    pidfd: OwnedFd,
    /// Our end of the agent's port.
    pub port: UnixStream,
    /// The kernel's log.
    pub log: PathBuf,
    /// What QEMU itself had to say.
    complaints: PathBuf,
}

impl Qemu {
    /// Starts a box.
    ///
    /// # Errors
    /// When QEMU is missing or its files cannot be written.
    pub fn start(options: &Options, image: &Image) -> Result<Qemu> {
        let logs = paths::target()?.join("kvmbox/log");
        paths::make_dir(&logs)?;
        prune(&logs);
        let (number, log) = fresh_log(&logs)?;
        let complaints = logs.join(format!("{number}.qemu"));
        let (port, far) = UnixStream::pair().context("cannot make a pair of sockets")?;
        let far_fd = far.as_raw_fd();
        let mut command = Command::new(PROGRAM);
        command.args(arguments(options, image, far_fd, &log)?);
        let errors =
            File::create(&complaints).with_context(|| format!("cannot write {}", complaints.display()))?;
        command.stdin(Stdio::null()).stdout(errors.try_clone()?).stderr(errors);
        // A group of its own: the terminal's signals are ours to act on.
        command.process_group(0);
        // SAFETY: the closure runs between fork and exec and makes system calls only: no allocation, no
        // locks. `far` outlives the spawn, so its number is the socket's in the child too.
        unsafe { command.pre_exec(move || prepare_child(far_fd)) };
        let child = command
            .spawn()
            .with_context(|| format!("cannot run {PROGRAM}; `cargo xtask setup` installs it"))?;
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("cannot watch the QEMU process")?;
        Ok(Qemu { child, pidfd, port, log, complaints })
    }

    /// Readable once the process has ended.
    pub fn ended(&self) -> impl AsFd + '_ {
        &self.pidfd
    }

    /// Ends the box at once.
    pub fn kill(&mut self) -> Option<ExitStatus> {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        self.child.wait().ok()
    }

    /// The end of the kernel's log and of QEMU's own messages.
    pub fn last_words(&self) -> String {
        let mut text = String::new();
        for (file, lines) in [(&self.log, 30), (&self.complaints, 10)] {
            let bytes = fs::read(file).unwrap_or_default();
            let all = String::from_utf8_lossy(&bytes).replace('\r', "");
            let all: Vec<&str> = all.lines().collect();
            for line in &all[all.len().saturating_sub(lines)..] {
                text.push_str("\n    ");
                text.push_str(line);
            }
        }
        text
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
        if fs::metadata(&self.complaints).is_ok_and(|meta| meta.len() == 0) {
            let _ = fs::remove_file(&self.complaints);
        }
    }
}

/// Runs in the child: lets the socket through the exec and has the kernel end the child when the thread
/// that started it is gone. (The standard library has undone our signal mask.)
fn prepare_child(far: i32) -> std::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // SAFETY: the descriptor is open here (see the caller) and only its flags are touched.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(far) };
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
    Ok(())
}

fn arguments(options: &Options, image: &Image, port: i32, log: &Path) -> Result<Vec<OsString>> {
    let mut list: Vec<OsString> = Vec::new();
    let mut add = |words: &str| list.extend(words.split(' ').map(OsString::from));
    if options.icount {
        add("-accel tcg,thread=single -icount shift=0,sleep=off -smp 1 -cpu max");
    } else {
        add("-accel tcg,thread=multi");
        // QEMU does not intercept XSETBV for its guests' guests, so their KVM never learns of the state they
        // enable and tells them a wrong size for it; kernels before 5.16 then crash their processes. Without
        // XSAVE all agree; AVX, which cannot be without it, must go too: aesni_intel looks at nothing else and crashes. Where `rep movsb` is
        // said to be fast, kernels copy with it, and it is emulated byte by byte: without that they copy at twice the speed.
        // The ruler above keeps the processor that it was made with.
        add("-cpu max,-xsave,-avx,-erms,-fsrm");
        add(&format!("-smp {}", options.cpus));
    }
    add("-M q35,usb=off,sata=off -nodefaults -no-user-config -display none -no-reboot");
    add(&format!("-m {}M", options.memory));
    add("-fsdev local,id=root,path=/,security_model=none,multidevs=remap");
    add("-device virtio-9p-pci,fsdev=root,mount_tag=host");
    add("-device virtio-serial-pci,max_ports=2");
    add(&format!("-chardev socket,id=agent,fd={port} -device virtserialport,chardev=agent,nr=1"));
    add("-kernel");
    list.push(image.kernel.clone().into());
    list.push("-initrd".into());
    list.push(image.initramfs.clone().into());
    list.push("-serial".into());
    // A comma in an option's value is doubled.
    let log = log.to_str().context("the target directory's name is not UTF-8")?.replace(',', ",,");
    list.push(format!("file:{log}").into());
    list.push("-append".into());
    list.push(kernel_command_line(options)?.into());
    Ok(list)
}

fn kernel_command_line(options: &Options) -> Result<String> {
    let agent = paths::own_program()?;
    let agent = agent
        .to_str()
        .filter(|path| !path.contains('"'))
        .context("the target directory's name is too odd for a box")?;
    // What lies under /tmp is to be written through to the host if it is the checkout or its products.
    let places = [paths::root(), paths::target()?, std::env::current_dir().unwrap_or_default()];
    let tmp = if places.iter().any(|place| place.starts_with("/tmp")) { "host" } else { "overlay" };
    // QEMU's emulated processor, once halted below a guest of its own, now and then never wakes again. A clock that counts
    // instructions has no such trouble, and would count those of the waiting.
    let idle = if options.icount { "" } else { "idle=poll " };
    Ok(format!(
        "{idle}console=ttyS0 panic=-1 mitigations=off tsc=reliable no_timer_check cryptomgr.notests \
         random.trust_cpu=on \"BOX_AGENT={agent}\" BOX_TMP={tmp}"
    ))
}

/// Makes a log file that no other box has, and the part of its name that is its own.
fn fresh_log(dir: &Path) -> Result<(String, PathBuf)> {
    for count in 1..10_000 {
        let name = format!("{}-{count}", std::process::id());
        let log = dir.join(format!("{name}.log"));
        if File::create_new(&log).is_ok() {
            return Ok((name, log));
        }
    }
    bail!("cannot make a file in {}; is the disk full?", dir.display())
}

/// Removes all but the newest logs. Failing to costs some disk space and nothing else.
fn prune(dir: &Path) {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<_> =
        files.filter_map(|file| Some((file.metadata().ok()?.modified().ok()?, file.path()))).collect();
    files.sort();
    let surplus = files.len().saturating_sub(LOGS_KEPT);
    for (_, file) in &files[..surplus] {
        let _ = fs::remove_file(file);
    }
}

/// How QEMU ended, in words.
pub fn describe(status: Option<ExitStatus>) -> String {
    match status {
        Some(status) if !status.success() => format!("QEMU failed ({status})"),
        _ => "the box stopped".into(),
    }
}
