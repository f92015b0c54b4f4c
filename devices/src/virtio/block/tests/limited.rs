//! Requests that are over their disk's limit wait in the queue.

use std::num::NonZero;

use super::*;
use crate::limit::{Limit, Limits};

fn limit(rate: u64, burst: u64) -> Option<Limit> {
    Some(Limit { rate: NonZero::new(rate)?, burst: NonZero::new(burst)? })
}

fn limited(queues: u16, bandwidth: Option<Limit>, ops: Option<Limit>) -> BlockOptions {
    let limiter = Limiter::new(Limits { bandwidth, ops });
    BlockOptions { queues, limiter, ..BlockOptions::default() }
}

impl Machine {
    fn throttled(&self) -> u64 {
        self.block.counters.throttled.get()
    }

    /// How many requests of a queue were given back since this was asked last.
    fn used(&mut self, queue: usize) -> usize {
        std::iter::from_fn(|| self.drivers[queue].used()).count()
    }
}

#[test]
fn what_is_over_the_limit_is_served_later() {
    for (engine, bandwidth, ops) in
        [(EngineKind::Auto, None, limit(1, 3)), (EngineKind::Plain, limit(4096, 3 * 4096), None)]
    {
        let file = file(SIZE);
        let block = BlockOptions { engine, ..limited(1, bandwidth, ops) };
        let mut machine = Machine::new(options(&file), file, block);
        let start = Instant::now();
        (0..4).for_each(|slot| machine.add_read(0, slot));
        machine.drivers[0].kick();
        until("the fourth waits", || machine.throttled() == 1);
        let order: Vec<u16> = (0..4).map(|_| machine.drivers[0].wait().0).collect();
        assert_eq!(order, [0, 1, 2, 3]);
        assert!(start.elapsed() >= Duration::from_secs(1), "a token takes a second");
        assert_eq!(machine.block.counters.to_guest.get(), 4 * 4096);
    }
}

#[test]
fn all_queues_of_a_disk_share_its_limit() {
    everywhere_with(
        || limited(2, None, limit(1, 3)),
        |mut machine| {
            for queue in 0..2 {
                (0..2).for_each(|slot| machine.add_read(queue, slot));
                machine.drivers[queue].kick();
            }
            until("one waits", || machine.throttled() == 1);
            let mut used = 0;
            let limit = Instant::now() + Duration::from_secs(10);
            while used < 4 {
                used += machine.used(0) + machine.used(1);
                assert!(Instant::now() < limit, "the last one goes too");
            }
        },
    );
}

#[test]
fn what_waits_is_back_in_the_queue_after_a_stop() {
    everywhere_with(
        // The second request would wait for an hour.
        || limited(1, limit(1, 4096), None),
        |mut machine| {
            (0..3).for_each(|slot| machine.add_read(0, slot));
            machine.drivers[0].kick();
            assert_eq!(machine.drivers[0].wait(), (0, 4097), "what went before is given back meanwhile");
            for round in 1..=3 {
                until("the second waits", || machine.throttled() == round);
                let queues = machine.block.stop();
                assert_eq!((queues[0].ring.next_avail(), queues[0].ring.next_used()), (1, 1));
                machine.resume(queues, u64::MAX);
            }
            assert_eq!(machine.used(0), 0);
            // What waited has not cost anything: the next in line waits no longer than it did.
            machine.block.stop();
            let mut gate = crate::limit::Gate::new(machine.block.limiter.clone(), Arc::default());
            let at = gate.pass(4096).unwrap_err();
            assert!(at <= Instant::now() + Duration::from_secs(4096));
        },
    );
}

#[test]
fn flushes_and_refusals_are_requests_too() {
    everywhere_with(
        || limited(1, limit(1, 512), limit(1, 2)),
        |mut machine| {
            assert_eq!(machine.run(4, 0, None).0, 0);
            assert_eq!(machine.run(77, 0, None).0, 2);
            let (header, status) = (machine.header(0, 8, 0), (STATUS, 1, WRITE));
            machine.drivers[0].add(0, &[header, (DATA, 20, WRITE), status]);
            machine.drivers[0].kick();
            until("the third waits", || machine.throttled() == 1);
        },
    );
}
