//! The goal that all vCPUs of a VM follow, and how many of them have stopped to wait for a new one.
//!
//! Lock order: the state's lock is taken alone.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What the vCPUs of a VM are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    Pause,
    /// Stay parked, and say first what state they are in. Set only while all are parked.
    Save,
    Run,
    Finish,
}

/// Shared by the vCPU threads and the `vmm` thread.
pub(super) struct Gate {
    state: Mutex<State>,
    /// A new goal, or one more that is parked.
    changed: Condvar,
}

struct State {
    goal: Goal,
    /// vCPUs that wait here: they are out of the guest, and touch nothing.
    parked: usize,
    /// vCPUs that have saved their state since that became the goal.
    saved: usize,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self { state: Mutex::new(State { goal: Goal::Pause, parked: 0, saved: 0 }), changed: Condvar::new() }
    }

    pub(super) fn goal(&self) -> Goal {
        self.lock().goal
    }

    pub(super) fn set(&self, goal: Goal) {
        let mut state = self.lock();
        state.goal = goal;
        state.saved = 0;
        drop(state);
        self.changed.notify_all();
    }

    /// A vCPU thread waits, parked, as long as the goal is one to `stay` for. Returns the one that is not.
    pub(super) fn park_while(&self, stay: impl Fn(Goal) -> bool) -> Goal {
        let mut state = self.lock();
        state.parked += 1;
        self.changed.notify_all();
        while stay(state.goal) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked -= 1;
        state.goal
    }

    /// Wait until `count` vCPUs are parked, at most `limit`. Returns how many are.
    pub(super) fn wait_parked(&self, count: usize, limit: Duration) -> usize {
        let fewer = |state: &mut State| state.parked < count;
        let waited = self.changed.wait_timeout_while(self.lock(), limit, fewer);
        waited.unwrap_or_else(PoisonError::into_inner).0.parked
    }

    /// A vCPU thread has saved its state.
    pub(super) fn saved(&self) {
        self.lock().saved += 1;
        self.changed.notify_all();
    }

    /// Wait until `count` vCPUs have saved their state, at most `limit`. Says whether they have.
    pub(super) fn wait_saved(&self, count: usize, limit: Duration) -> bool {
        let fewer = |state: &mut State| state.saved < count;
        let waited = self.changed.wait_timeout_while(self.lock(), limit, fewer);
        waited.unwrap_or_else(PoisonError::into_inner).0.saved >= count
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn who_waits_for_a_goal_is_counted_until_it_comes() {
        let gate = Arc::new(Gate::new());
        let vcpus: Vec<_> = (0..3)
            .map(|_| {
                let gate = Arc::clone(&gate);
                std::thread::spawn(move || gate.park_while(|goal| goal == Goal::Pause))
            })
            .collect();
        assert_eq!(gate.wait_parked(3, Duration::from_secs(10)), 3);
        assert_eq!(gate.wait_parked(4, Duration::from_millis(1)), 3);
        gate.set(Goal::Run);
        for vcpu in vcpus {
            assert_eq!(vcpu.join().unwrap(), Goal::Run);
        }
        assert_eq!(gate.wait_parked(0, Duration::ZERO), 0);
    }
}
