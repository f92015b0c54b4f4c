//! vCPU threads. `vcpuN` owns its `VcpuFd` and does nothing but run it and answer its exits.
//!
//! ```text
//!   spawn ──► paused ──goal: Run──► running ──goal: Pause, kick──► paused
//!                │                    │  └────goal: Finish, kick──► finished: thread ends
//!                │                    ├──event sent──► waiting ──goal: Finish──► finished
//!                │                    └──panic told──► told ──goal: Finish──► finished
//!                │                                      └─────goal: Pause──► paused
//!                ├──goal: Finish──► finished
//!                └──goal: Save──► saving ──goal: Pause──► paused
//! ```
//!
//! Every state is one function that returns the next. All vCPUs of a VM share one [`Gate`], which holds the goal. A vCPU
//! whose access asks something of the whole machine sends an event and waits for its end: whatever the `vmm` thread
//! decides, this boot of the guest is over. One whose guest's kernel has panicked can be paused instead, and go on. Those that are
//! paused or wait are parked: out of the guest, and done with what they left it for.

mod count;
mod create;
mod exit;
mod failure;
mod gate;
mod state;

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arch::memory::SharedRam;
use arch::state::{Raw, VcpuState};
use devices::bus::Effect;
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

use crate::board::Board;
use crate::event::{Event, EventSender};
use crate::kvm::KvmError;
use crate::stats::VcpuStats;

pub(crate) use count::VcpuCounters;
use create::NewVcpu;
pub use create::TemplateError;
pub(crate) use create::{Created, Start, create};
pub use failure::VcpuError;
use gate::{Gate, Goal};
use state::Kept;
pub use state::StateError;
pub(crate) use state::wall_ns;

/// How long a vCPU may take to come out of the guest and finish what it left it for. That takes moments, unless it prints
/// to somebody who does not read.
const PATIENCE: Duration = Duration::from_secs(5);

/// A vCPU is not parked within [`PATIENCE`].
#[derive(Debug, thiserror::Error)]
#[error(
    "{stuck} of the VM's vCPUs do not stop: they wait for the host, most likely for somebody to read what the guest prints; \
     read it, and try again"
)]
pub(crate) struct Stuck {
    stuck: usize,
}

/// The vCPUs' state cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SaveError {
    /// KVM refuses.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A vCPU has asked for something that ends this boot of the guest, and that is about to be done.
    #[error("the guest is being reset or switched off: try again")]
    Ends,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `kvm_run.immediate_exit` of a vCPU, writable from other threads.
struct ImmediateExit(NonNull<AtomicU8>);

// SAFETY: it points to one byte that is accessed atomically by us; KVM reads it once on entry.
unsafe impl Send for ImmediateExit {}

impl ImmediateExit {
    fn of(vcpu: &mut VcpuFd) -> Self {
        let byte = &raw mut vcpu.get_kvm_run().immediate_exit;
        // An AtomicU8 has the layout of a u8; a pointer from a reference is not null.
        Self(NonNull::new(byte.cast()).unwrap_or(NonNull::dangling()))
    }

    fn set(&self, value: u8) {
        // SAFETY: the mapping lives as long as the VcpuFd, which its thread drops only after it has taken the
        // handle away (see `Thread::kick` and `run`).
        unsafe { self.0.as_ref() }.store(value, Ordering::SeqCst);
    }
}

/// All vCPU threads of one VM. Dropping it finishes them.
pub(crate) struct Vcpus {
    gate: Arc<Gate>,
    threads: Vec<Thread>,
}

/// A vCPU's state on its way from its thread.
type Saved = Arc<Mutex<Option<Result<VcpuState, KvmError>>>>;

struct Thread {
    /// `None` once the thread has left its vCPU for good.
    exit: Arc<Mutex<Option<ImmediateExit>>>,
    counters: Arc<VcpuCounters>,
    /// Where it leaves what was asked of it by [`Goal::Save`].
    saved: Saved,
    handle: JoinHandle<()>,
}

impl Thread {
    /// Make the vCPU leave the guest, or not enter it, until it has looked at the goal.
    fn kick(&self) {
        if let Some(exit) = &*lock(&self.exit) {
            exit.set(1);
            // SAFETY: the thread has not been joined, so its handle is valid; the signal's handler does nothing.
            unsafe { libc::pthread_kill(self.handle.as_pthread_t(), SIGRTMIN()) };
        }
    }
}

/// The signal is only there to interrupt KVM_RUN.
extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// What a vCPU thread works with.
pub(crate) struct Context {
    board: Arc<Board>,
    ram: SharedRam,
    events: EventSender,
    /// A driver has started its device since the guest was booted.
    booted: AtomicBool,
}

impl Context {
    /// `booted`: the guest's drivers have started their devices already.
    pub(crate) fn new(board: Arc<Board>, ram: SharedRam, events: EventSender, booted: bool) -> Self {
        Self { board, ram, events, booted: AtomicBool::new(booted) }
    }

    fn driver_ready(&self) {
        if !self.booted.swap(true, Ordering::Relaxed) {
            self.events.send(Event::Booted);
        }
    }
}

impl Vcpus {
    /// One thread for each of `vcpus`, paused.
    ///
    /// # Errors
    /// If the host has no more threads.
    pub(crate) fn spawn(
        created: Created,
        counters: &[Arc<VcpuCounters>],
        context: &Arc<Context>,
    ) -> io::Result<Self> {
        register_signal_handler(SIGRTMIN(), ignore)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        let mut all = Self { gate: Arc::new(Gate::new()), threads: Vec::new() };
        let kept = Arc::new(created.kept);
        for (index, (NewVcpu { fd: mut vcpu, cpuid }, counters)) in
            created.vcpus.into_iter().zip(counters).enumerate()
        {
            let exit = Arc::new(Mutex::new(Some(ImmediateExit::of(&mut vcpu))));
            let saved = Arc::default();
            let mut body = Body {
                vcpu,
                cpuid,
                ran: created.ran,
                kept: Arc::clone(&kept),
                saved: Arc::clone(&saved),
                gate: Arc::clone(&all.gate),
                exit: Arc::clone(&exit),
                counters: Arc::clone(counters),
                context: Arc::clone(context),
            };
            let builder = devices::worker::named_thread(format!("vcpu{index}"));
            // On an early return, `all` finishes those that were started.
            let handle = builder.spawn(move || body.run())?;
            all.threads.push(Thread { exit, counters: Arc::clone(counters), saved, handle });
        }
        Ok(all)
    }

    /// Let them run.
    pub(crate) fn run(&self) {
        self.gate.set(Goal::Run);
    }

    /// Park them all, or none: they run on if one of them does not come.
    ///
    /// # Errors
    /// If one is stuck in the host.
    pub(crate) fn pause(&self) -> Result<(), Stuck> {
        self.gate.set(Goal::Pause);
        self.threads.iter().for_each(Thread::kick);
        let parked = self.gate.wait_parked(self.threads.len(), PATIENCE);
        match self.threads.len().saturating_sub(parked) {
            0 => Ok(()),
            stuck => {
                self.run();
                Err(Stuck { stuck })
            }
        }
    }

    /// The state of each, all of which are parked by [`Vcpus::pause`], and stay so. Each is read by its own thread, at the same time.
    ///
    /// # Errors
    /// If KVM refuses, or the guest ends or resets at this moment.
    pub(crate) fn save(&self) -> Result<Vec<VcpuState>, SaveError> {
        self.gate.set(Goal::Save);
        let saved = self.gate.wait_saved(self.threads.len(), PATIENCE);
        self.gate.set(Goal::Pause);
        if !saved {
            return Err(SaveError::Ends);
        }
        let take = |thread: &Thread| match lock(&thread.saved).take() {
            Some(Ok(state)) => Ok(state),
            Some(Err(error)) => Err(error.into()),
            None => Err(SaveError::Ends),
        };
        self.threads.iter().map(take).collect()
    }

    /// What each has done.
    pub(crate) fn stats(&self) -> Vec<VcpuStats> {
        let stats = |(index, thread): (u32, &Thread)| {
            thread.counters.stats(index, count::thread_time(thread.handle.as_pthread_t()))
        };
        (0..).zip(&self.threads).map(stats).collect()
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.gate.set(Goal::Finish);
        for thread in &self.threads {
            thread.kick();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.handle.join();
        }
    }
}

enum State {
    Paused,
    Saving,
    Running,
    Waiting,
    Told,
    Finished,
}

/// What a vCPU thread owns.
struct Body {
    vcpu: VcpuFd,
    /// What CPUID was to tell it.
    cpuid: Vec<Raw<kvm_cpuid_entry2>>,
    /// It has been in the guest.
    ran: bool,
    kept: Arc<Kept>,
    saved: Saved,
    gate: Arc<Gate>,
    exit: Arc<Mutex<Option<ImmediateExit>>>,
    counters: Arc<VcpuCounters>,
    context: Arc<Context>,
}

impl Body {
    fn run(&mut self) {
        // Whoever started the program may have blocked the signal that kicks.
        if let Err(error) = unblock_signal(SIGRTMIN()) {
            log::warn!("a vCPU that cannot be kicked: {error}");
        }
        let mut state = State::Paused;
        loop {
            state = match state {
                State::Paused => self.paused(),
                State::Saving => self.saving(),
                State::Running => self.running(),
                State::Waiting => self.waiting(),
                State::Told => self.told(),
                State::Finished => break,
            };
        }
        self.counters.thread_ends();
        // From here on the vCPU's page may go away: nobody is to kick it.
        *lock(&self.exit) = None;
    }

    fn paused(&mut self) -> State {
        match self.gate.park_while(|goal| goal == Goal::Pause) {
            Goal::Finish => return State::Finished,
            Goal::Save => return State::Saving,
            Goal::Pause | Goal::Run => {}
        }
        if self.ran {
            // The guest's watchdogs are not to bark at the time that it missed. Without a clock of KVM's it has no flag
            // for this, and KVM says so.
            let _ = self.vcpu.kvmclock_ctrl();
        }
        State::Running
    }

    fn running(&mut self) -> State {
        self.ran = true;
        self.vcpu.set_kvm_immediate_exit(0);
        loop {
            // Looked at after the flag is cleared: a kick in between sets it again.
            match self.gate.goal() {
                Goal::Run => {}
                // Nobody is asked to save before all are parked.
                Goal::Pause | Goal::Save => return State::Paused,
                Goal::Finish => return State::Finished,
            }
            let event = self.run_until_event();
            if let Some(event) = event {
                let panicked = matches!(event, Event::Effect(Effect::Panicked));
                self.context.events.send(event);
                return if panicked { State::Told } else { State::Waiting };
            }
            self.vcpu.set_kvm_immediate_exit(0);
        }
    }

    /// Say what it is, once for each time it is asked.
    fn saving(&mut self) -> State {
        *lock(&self.saved) = Some(state::save(&self.vcpu, &self.cpuid, &self.kept));
        self.gate.saved();
        match self.gate.park_while(|goal| goal == Goal::Save) {
            Goal::Finish => State::Finished,
            _ => State::Paused,
        }
    }

    /// The `vmm` thread has been told. It ends this boot, now or, while the VM is paused, a little later.
    fn waiting(&mut self) -> State {
        match self.gate.park_while(|goal| !matches!(goal, Goal::Finish | Goal::Save)) {
            Goal::Finish => State::Finished,
            _ => {
                // It has no state that could go on, and whoever asks is not to wait for one.
                self.gate.saved();
                self.gate.park_while(|goal| goal == Goal::Save);
                State::Waiting
            }
        }
    }

    /// The guest's kernel has panicked, and the `vmm` thread has been told. It ends this boot, or pauses the machine as it is now.
    fn told(&mut self) -> State {
        // The write by which the guest said so is done when KVM is entered once more, and only then there is a state to save. It does not
        // come to the guest: EINTR is all that it can say.
        self.vcpu.set_kvm_immediate_exit(1);
        let _ = self.vcpu.run();
        match self.gate.park_while(|goal| goal == Goal::Run) {
            Goal::Finish => State::Finished,
            _ => State::Paused,
        }
    }

    /// Run until there is something to tell, or (`None`) it was kicked.
    fn run_until_event(&mut self) -> Option<Event> {
        loop {
            match exit::run_once(&mut self.vcpu, &self.context.board, &self.counters) {
                exit::Next::Go => {}
                exit::Next::DriverReady => self.context.driver_ready(),
                exit::Next::Look => return None,
                exit::Next::Tell(effect) => return Some(Event::Effect(effect)),
                exit::Next::TripleFault => return Some(Event::TripleFault),
                exit::Next::Fail(cause) => {
                    let error = failure::explain(cause, &mut self.vcpu, &self.context.ram);
                    return Some(Event::Failed(error.into()));
                }
            }
        }
    }
}
