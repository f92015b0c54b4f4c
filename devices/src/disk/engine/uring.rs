//! The io_uring engine: requests, doorbell and end of the worker all wait in one ring.
//!
//! ```text
//! start ──► slot + entry queued ──turn: io_uring_enter──► in flight ──completion──► Done
//!                   ▲                                                      │
//!                   └────────────── more to do (short, next piece) ◄───────┘
//! ```
//!
//! Each slot has at most one entry in the kernel, whose `user_data` is the slot's number; the numbers above
//! [`OWN`] are the engine's own.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{self, CancelBuilder, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};
use vmm_sys_util::eventfd::EventFd;

use super::files::Files;
use super::transfer::{Step, Transfer};
use super::{Disk, Done, Engine, Events, Io, Sleep, Wake};

/// The first `user_data` that is no slot's.
const OWN: u64 = u64::MAX - 7;
const KICK: u64 = OWN;
const KILL: u64 = OWN + 1;
const TIMEOUT: u64 = OWN + 2;
const CANCEL: u64 = OWN + 3;

/// Entries of the submission queue: when it is full it is handed over, so it need not hold every request.
const ENTRIES: u32 = 128;

/// How long the host may take to finish what is in flight when the engine ends, and again once it was told to cancel.
const DRAIN_SECONDS: u64 = 10;

/// A request in flight.
#[derive(Debug)]
struct Slot<T> {
    token: T,
    transfer: Transfer,
}

/// An event that is polled for.
#[derive(Debug)]
struct Watch {
    event: EventFd,
    armed: bool,
}

/// See the module's documentation.
pub(super) struct Uring<T> {
    // Declared before the slots: it is closed first.
    ring: IoUring,
    files: Files,
    /// The files are in the ring's table of files, by their numbers.
    registered: bool,
    slots: Vec<Option<Slot<T>>>,
    free: Vec<usize>,
    kick: Watch,
    kill: Watch,
    /// Polls stay armed (Linux 5.13). Otherwise they end with each event, which must then be read.
    multishot: bool,
    /// Waiting may have an end (Linux 5.11). Otherwise the ring itself is polled.
    timed: bool,
    failed: Vec<Done<T>>,
}

/// Set up a ring with the best flags that this kernel knows.
fn build(entries: u32, completions: u32) -> io::Result<IoUring> {
    let mut deferred = IoUring::builder();
    // Completions are worked off when this thread asks, not by interrupting it (Linux 6.1).
    deferred.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    let mut cooperative = IoUring::builder();
    cooperative.setup_coop_taskrun().setup_taskrun_flag();
    let mut basic = IoUring::builder();
    let mut result = Err(io::ErrorKind::Unsupported.into());
    for builder in [&mut deferred, &mut cooperative, &mut basic] {
        builder.dontfork().setup_cqsize(completions).setup_clamp();
        result = builder.build(entries);
        // EINVAL is an older kernel; anything else (forbidden, no memory) will not get better.
        if !matches!(&result, Err(error) if error.raw_os_error() == Some(libc::EINVAL)) {
            break;
        }
    }
    result
}

/// Whether a ring can be had.
///
/// # Errors
/// The host's reason if not.
pub(super) fn probe() -> io::Result<()> {
    build(1, 2).map(drop)
}

impl<T> Uring<T> {
    pub(super) fn new(disk: Arc<Disk>, events: &Events, capacity: usize) -> io::Result<Self> {
        let completions = u32::try_from(capacity).unwrap_or(u32::MAX).saturating_mul(2).clamp(64, 4096);
        let ring = build(ENTRIES.min(completions / 2), completions)?;
        if !ring.params().is_feature_nodrop() {
            // Linux before 5.5 may lose completions, and lacks operations used here.
            return Err(io::ErrorKind::Unsupported.into());
        }
        let timed = ring.params().is_feature_ext_arg();
        let files = Files::new(disk);
        let registered = ring.submitter().register_files(files.fds()).is_ok();
        let watch = |event: &EventFd| Ok::<_, io::Error>(Watch { event: event.try_clone()?, armed: false });
        Ok(Self {
            ring,
            files,
            registered,
            slots: (0..capacity).map(|_| None).collect(),
            free: (0..capacity).rev().collect(),
            kick: watch(&events.kick)?,
            kill: watch(&events.kill)?,
            multishot: true,
            timed,
            failed: Vec::new(),
        })
    }

    /// As on a kernel without multishot polls, and without an end of waiting.
    #[cfg(test)]
    pub(super) fn like_an_old_kernel(mut self) -> Self {
        self.multishot = false;
        self.timed = false;
        self
    }

    /// Take the next step of a slot's transfer: queue an entry for it, or end it.
    fn proceed(&mut self, index: usize, last: Option<io::Result<usize>>, done: &mut Vec<Done<T>>) {
        let Some(slot) = self.slots.get_mut(index).and_then(Option::as_mut) else { return };
        let step = slot.transfer.next(&self.files, last);
        let files = &self.files;
        // At most a few hundred files.
        let fd = |file: usize| if self.registered { file as RawFd } else { files.fd(file) };
        let flags = if self.registered { Flags::FIXED_FILE } else { Flags::empty() };
        let result = match entry(&step, &slot.transfer, fd).map(|entry| entry.flags(flags)) {
            Some(entry) => match self.push(entry.user_data(index as u64)) {
                Ok(()) => return,
                Err(error) => Err(error),
            },
            None => match step {
                Step::Finished(result) => result,
                // Each other step has an entry.
                _ => Err(io::ErrorKind::Unsupported.into()),
            },
        };
        if let Some(slot) = self.slots.get_mut(index).and_then(Option::take) {
            self.free.push(index);
            done.push(Done { token: slot.token, result });
        }
    }

    /// Queue an entry, handing over the queue if it is full.
    fn push(&mut self, entry: Entry) -> io::Result<()> {
        for _ in 0..2 {
            // SAFETY: an entry of a slot points only at its transfer's iovecs, and through them at guest memory
            // or a bounce buffer. The transfer keeps all three where they are, and stays in its slot until the
            // completion was seen (`drain` leaks what never completes). Entries of the engine's own point at
            // nothing, or at a static time.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn arm(&mut self) -> io::Result<()> {
        for (which, user_data) in [(false, KICK), (true, KILL)] {
            let watch = if which { &mut self.kill } else { &mut self.kick };
            if !watch.armed {
                watch.armed = true;
                let fd = types::Fd(watch.event.as_raw_fd());
                // POLLIN is a small positive constant.
                let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(self.multishot);
                self.push(poll.build().user_data(user_data))?;
            }
        }
        Ok(())
    }

    /// Submit, and let the kernel deliver. Without anything to do and not to wait, this is two loads.
    fn enter(&mut self, sleep: Sleep) -> io::Result<()> {
        let queue = self.ring.submission();
        let idle = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        let result = match sleep {
            Sleep::No if idle => return Ok(()),
            Sleep::No => self.ring.submit(),
            Sleep::Forever => self.ring.submit_and_wait(1),
            Sleep::For(time) if self.timed => {
                let time = Timespec::from(time);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
            Sleep::For(time) => self.ring.submit().and_then(|_| readable_within(self.ring.as_raw_fd(), time)),
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ETIME) => Ok(()),
            // Interrupted, or short of memory or room for completions: collect what there is and come again.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn reap(&mut self, done: &mut Vec<Done<T>>) -> Reaped {
        let mut reaped = Reaped::default();
        loop {
            let Some(completion) = self.ring.completion().next() else { return reaped };
            let result = completion.result();
            match completion.user_data() {
                KICK => reaped.wake.kick |= self.watched(&completion, false),
                KILL => reaped.wake.kill |= self.watched(&completion, true),
                TIMEOUT => reaped.timeout = true,
                CANCEL => {}
                index => {
                    let result = usize::try_from(result)
                        .map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg()));
                    // A slot's number came from a usize.
                    self.proceed(index as usize, Some(result), done);
                }
            }
        }
    }

    /// A poll completed: whether its event was seen.
    fn watched(&mut self, completion: &cqueue::Entry, kill: bool) -> bool {
        let watch = if kill { &mut self.kill } else { &mut self.kick };
        watch.armed = cqueue::more(completion.flags());
        if completion.result() < 0 {
            self.multishot &= completion.result() != -libc::EINVAL;
            return false;
        }
        if !kill && !self.multishot {
            // A new poll would see this event again. It was readable, and nobody else reads it.
            let _ = watch.event.read();
        }
        true
    }

    /// Wait for what is in flight until the time is over; whether all of it has ended.
    fn settle(&mut self, done: &mut Vec<Done<T>>) -> bool {
        static LIMIT: Timespec = Timespec::new().sec(DRAIN_SECONDS);
        if self.in_flight() == 0 {
            return true;
        }
        // The kernel copies the time when it takes the entry.
        let timeout = opcode::Timeout::new(&raw const LIMIT).build().user_data(TIMEOUT);
        if self.push(timeout).is_err() {
            return false;
        }
        while self.in_flight() > 0 {
            if self.enter(Sleep::Forever).is_err() || self.reap(done).timeout {
                return self.in_flight() == 0;
            }
        }
        true
    }
}

/// What was among the completions.
#[derive(Default)]
struct Reaped {
    wake: Wake,
    timeout: bool,
}

/// The ring's entry for a step, without `user_data`; `None` for the last step.
fn entry(step: &Step, transfer: &Transfer, fd: impl Fn(usize) -> RawFd) -> Option<Entry> {
    let fd = |file: &usize| types::Fd(fd(*file));
    let iovecs = transfer.iovecs();
    // At most IOV_MAX.
    let count = iovecs.len() as u32;
    let entry = match (step, iovecs) {
        (Step::Finished(_), _) => return None,
        (Step::Sync { file }, _) => opcode::Fsync::new(fd(file)).flags(FsyncFlags::DATASYNC).build(),
        (Step::Fallocate { flags, extent }, _) => opcode::Fallocate::new(fd(&0), extent.len)
            .offset(extent.offset)
            // The few flags there are fit.
            .mode(flags.bits() as i32)
            .build(),
        // One buffer needs no vector. Longer ones than 32 bits are cut, and continued as any short transfer is.
        (Step::Read { file, offset }, [one]) => {
            opcode::Read::new(fd(file), one.iov_base.cast(), clamp(one.iov_len)).offset(*offset).build()
        }
        (Step::Read { file, offset }, _) => {
            opcode::Readv::new(fd(file), iovecs.as_ptr(), count).offset(*offset).build()
        }
        (Step::Write { file, offset, durable }, [one]) => {
            let write = opcode::Write::new(fd(file), one.iov_base.cast_const().cast(), clamp(one.iov_len));
            write.offset(*offset).rw_flags(rw_flags(*durable)).build()
        }
        (Step::Write { file, offset, durable }, _) => {
            let write = opcode::Writev::new(fd(file), iovecs.as_ptr(), count);
            write.offset(*offset).rw_flags(rw_flags(*durable)).build()
        }
    };
    Some(entry)
}

/// Wait until there are completions, for about so long.
fn readable_within(ring: RawFd, time: Duration) -> io::Result<usize> {
    let mut poll = libc::pollfd { fd: ring, events: libc::POLLIN, revents: 0 };
    let millis = i32::try_from(time.as_millis()).map_or(i32::MAX, |millis| millis.saturating_add(1));
    // SAFETY: `poll` is one entry and outlives the call.
    usize::try_from(unsafe { libc::poll(&mut poll, 1, millis) }).map_err(|_| io::Error::last_os_error())
}

/// The most of one transfer: below what the kernel cuts at itself, and a multiple of every block size.
fn clamp(len: usize) -> u32 {
    len.min(1 << 30) as u32
}

fn rw_flags(durable: bool) -> i32 {
    if durable { libc::RWF_DSYNC } else { 0 }
}

impl<T> Engine<T> for Uring<T> {
    fn start(&mut self, token: T, io: Io) {
        let Some(index) = self.free.pop() else {
            self.failed.push(Done { token, result: Err(io::ErrorKind::WouldBlock.into()) });
            return;
        };
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Some(Slot { token, transfer: Transfer::new(io) });
        }
        let mut ended = std::mem::take(&mut self.failed);
        self.proceed(index, None, &mut ended);
        self.failed = ended;
    }

    fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len() + self.failed.len()
    }

    fn turn(&mut self, sleep: Sleep, done: &mut Vec<Done<T>>) -> io::Result<Wake> {
        let sleep = if self.failed.is_empty() { sleep } else { Sleep::No };
        done.append(&mut self.failed);
        self.arm()?;
        self.enter(sleep)?;
        Ok(self.reap(done).wake)
    }

    fn drain(&mut self, done: &mut Vec<Done<T>>) {
        done.append(&mut self.failed);
        if self.settle(done) {
            return;
        }
        let path = self.files.disk.path().display();
        log::error!("{path}: the host has not finished all requests in {DRAIN_SECONDS} s: cancelling them");
        let _ = self.push(opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(CANCEL));
        if self.settle(done) {
            return;
        }
        log::error!("{}: giving up {} requests", self.files.disk.path().display(), self.in_flight());
        // The host may still write to what they point at, which must never be used for anything else, and to the
        // disk, which must stay locked.
        std::mem::forget(Arc::clone(&self.files.disk));
        for slot in self.slots.drain(..).flatten() {
            std::mem::forget(slot.transfer);
        }
        self.free.clear();
    }
}

impl<T> Drop for Uring<T> {
    fn drop(&mut self) {
        self.drain(&mut Vec::new());
        // The ring goes away some time after it is closed; the disk is free now.
        let _ = self.ring.submitter().unregister_files();
    }
}
