//! vCPU threads. `vcpuN` owns its `VcpuFd` and does nothing but run it and answer its exits.
//!
//! ```text
//!   spawn ──► paused ──goal: Run──► running ──kick──► paused   (goal: Pause)
//!                │ ▲                   │    └───────► finished (goal: Finish)
//!                │ └── event sent ─────┘
//!                └─────goal: Finish──► finished: thread ends
//! ```
//!
//! Every state is one function that returns the next. All vCPUs of a VM share one [`Gate`], which holds the goal. A vCPU
//! whose access asks something of the whole machine sends an event and waits for a new goal: the `vmm` thread
//! decides.

mod create;
mod exit;
mod failure;

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use arch::memory::SharedRam;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

use crate::board::Board;
use crate::event::{Event, EventSender};

pub(crate) use create::create;
pub use failure::VcpuError;

/// What the vCPUs of a VM are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    Pause,
    Run,
    Finish,
}

/// The goal that all vCPUs of a VM follow.
pub(crate) struct Gate {
    goal: Mutex<Goal>,
    changed: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gate {
    fn new() -> Self {
        Self { goal: Mutex::new(Goal::Pause), changed: Condvar::new() }
    }

    fn goal(&self) -> Goal {
        *lock(&self.goal)
    }

    fn set(&self, goal: Goal) {
        *lock(&self.goal) = goal;
        self.changed.notify_all();
    }

    /// Wait until the goal is not `waiting`.
    fn wait_while(&self, waiting: Goal) -> Goal {
        let mut goal = lock(&self.goal);
        while *goal == waiting {
            goal = self.changed.wait(goal).unwrap_or_else(PoisonError::into_inner);
        }
        *goal
    }
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

struct Thread {
    /// `None` once the thread has left its vCPU for good.
    exit: Arc<Mutex<Option<ImmediateExit>>>,
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
    pub(crate) board: Arc<Board>,
    pub(crate) ram: SharedRam,
    pub(crate) events: EventSender,
}

impl Vcpus {
    /// One thread for each of `vcpus`, paused.
    ///
    /// # Errors
    /// If the host has no more threads.
    pub(crate) fn spawn(vcpus: Vec<VcpuFd>, context: &Arc<Context>) -> io::Result<Self> {
        register_signal_handler(SIGRTMIN(), ignore)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        let mut all = Self { gate: Arc::new(Gate::new()), threads: Vec::new() };
        for (index, mut vcpu) in vcpus.into_iter().enumerate() {
            let exit = Arc::new(Mutex::new(Some(ImmediateExit::of(&mut vcpu))));
            let mut body = Body {
                vcpu,
                gate: Arc::clone(&all.gate),
                exit: Arc::clone(&exit),
                context: Arc::clone(context),
            };
            let builder = devices::worker::named_thread(format!("vcpu{index}"));
            // On an early return, `all` finishes those that were started.
            let handle = builder.spawn(move || body.run())?;
            all.threads.push(Thread { exit, handle });
        }
        Ok(all)
    }

    /// Let them run.
    pub(crate) fn run(&self) {
        self.gate.set(Goal::Run);
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
    Running,
    Finished,
}

/// What a vCPU thread owns.
struct Body {
    vcpu: VcpuFd,
    gate: Arc<Gate>,
    exit: Arc<Mutex<Option<ImmediateExit>>>,
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
                State::Running => self.running(),
                State::Finished => break,
            };
        }
        // From here on the vCPU's page may go away: nobody is to kick it.
        *lock(&self.exit) = None;
    }

    fn paused(&mut self) -> State {
        match self.gate.wait_while(Goal::Pause) {
            Goal::Finish => State::Finished,
            Goal::Run | Goal::Pause => State::Running,
        }
    }

    fn running(&mut self) -> State {
        self.vcpu.set_kvm_immediate_exit(0);
        loop {
            // Looked at after the flag is cleared: a kick in between sets it again.
            match self.gate.goal() {
                Goal::Run => {}
                Goal::Pause => return State::Paused,
                Goal::Finish => return State::Finished,
            }
            let event = self.run_until_event();
            if let Some(event) = event {
                self.context.events.send(event);
                return self.waiting();
            }
            self.vcpu.set_kvm_immediate_exit(0);
        }
    }

    /// The `vmm` thread has been told; it answers by pausing or finishing all vCPUs.
    fn waiting(&mut self) -> State {
        match self.gate.wait_while(Goal::Run) {
            Goal::Finish => State::Finished,
            Goal::Run | Goal::Pause => State::Paused,
        }
    }

    /// Run until there is something to tell, or (`None`) it was kicked.
    fn run_until_event(&mut self) -> Option<Event> {
        loop {
            match exit::run_once(&mut self.vcpu, &self.context.board) {
                exit::Next::Go => {}
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
