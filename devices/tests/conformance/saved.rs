//! A device that is saved in any phase is made again by another machine, and its driver never knows.

use devices::virtio::testing::{GuestQueue, Kind, Source, features, status};

use super::factories::Request;
use super::{Bench, EVERYTHING, PLAIN, everywhere};

/// Have a request of each queue waiting, and the guest's word for what it must come back as.
fn ask(bench: &mut Bench, queues: &mut [GuestQueue]) -> Vec<Request> {
    let mut waiting = Vec::new();
    for queue in queues {
        let request = (bench.factory.request)(&mut bench.guest, queue.index());
        queue.add(&request.buffers);
        bench.guest.registers.notify(queue.index());
        waiting.push(request);
    }
    waiting
}

#[test]
fn a_device_that_no_driver_has_seen() {
    everywhere(|bench| {
        bench.move_out();
        assert_eq!(bench.guest.registers.status(), 0);
        bench.works();
    });
}

#[test]
fn a_device_that_a_driver_has_begun_to_initialise() {
    everywhere(|bench| {
        let registers = &bench.guest.registers;
        let wanted = registers.device_features() & PLAIN;
        registers.write_status(status::ACKNOWLEDGE);
        registers.write_status(status::ACKNOWLEDGE | status::DRIVER);
        registers.write_driver_features(wanted);
        bench.move_out();
        // The features are agreed on by another machine than the one that they were written to.
        let agreed = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        bench.guest.registers.write_status(agreed);
        assert_eq!(bench.guest.registers.status(), agreed);
        bench.move_out();
        let mut queues = bench.guest.enable_queues(0);
        bench.move_out();
        for queue in &queues {
            assert!(bench.guest.registers.queue_enabled(queue.index()));
        }
        assert!(bench.guest.doorbells.registered().is_empty());
        bench.guest.driver_ok();
        for queue in &mut queues {
            bench.work_on(queue, false);
        }
        assert!(!bench.guest.broken());
    });
}

#[test]
fn a_device_whose_driver_broke_the_rules_of_initialisation() {
    everywhere(|bench| {
        let registers = &bench.guest.registers;
        registers.write_status(status::ACKNOWLEDGE | status::DRIVER);
        registers.write_driver_features(EVERYTHING);
        registers.write_status(registers.status() | status::FAILED);
        bench.move_out();
        let failed = status::ACKNOWLEDGE | status::DRIVER | status::FAILED;
        assert_eq!(bench.guest.registers.status(), failed);
        bench.works();
    });
}

#[test]
fn an_active_device_with_nothing_to_do() {
    everywhere(|bench| {
        for ring in [0, features::EVENT_IDX | features::INDIRECT] {
            let mut queues = bench.guest.start(PLAIN | ring);
            let bells = bench.guest.doorbells.registered();
            for round in 0..3 {
                for queue in &mut queues {
                    bench.work_on(queue, ring != 0 && round == 1);
                }
                bench.move_out();
                assert_eq!(bench.guest.doorbells.registered(), bells);
            }
            for queue in &mut queues {
                bench.work_on(queue, false);
            }
            assert!(!bench.guest.broken());
        }
    });
}

#[test]
fn requests_that_nobody_has_looked_at() {
    everywhere(|bench| {
        let mut queues = bench.guest.start(EVERYTHING);
        for queue in &mut queues {
            bench.work_on(queue, false);
        }
        bench.guest.transport().pause();
        let waiting = ask(bench, &mut queues);
        bench.move_out();
        (bench.poke)();
        for (queue, request) in queues.iter_mut().zip(waiting) {
            let (_, len) = queue.wait_used();
            (request.check)(&bench.guest, len);
        }
        assert!(!bench.guest.broken());
    });
}

#[test]
fn requests_that_are_being_served() {
    everywhere(|bench| {
        for round in 0..20 {
            let mut queues = bench.guest.start(EVERYTHING);
            let mut waiting = Vec::new();
            for _ in 0..4 {
                waiting.extend(ask(bench, &mut queues));
            }
            (bench.poke)();
            std::thread::sleep(std::time::Duration::from_micros(20 * round));
            bench.move_out();
            (0..4).for_each(|_| (bench.poke)());
            // A limit may hold back all but one of them for a while, and there may be less to say than room for it.
            let (first, _) = waiting.split_at(queues.len());
            for (queue, request) in queues.iter_mut().zip(first) {
                let (_, len) = queue.wait_used();
                (request.check)(&bench.guest, len);
            }
            assert!(!bench.guest.broken());
        }
    });
}

#[test]
fn interrupts_that_the_guest_has_not_seen() {
    everywhere(|bench| {
        for ring in [0, features::EVENT_IDX] {
            let mut queues = bench.guest.start(PLAIN | ring);
            for queue in &mut queues {
                bench.work_on(queue, false);
                if ring != 0 {
                    // The driver wants to hear of the next one.
                    queue.set_used_event(queue.used_index());
                }
                bench.work_on(queue, false);
            }
            // The machine that was interrupted is gone, and what it had not given its processors with it.
            bench.move_out();
            for queue in &queues {
                bench.guest.wait_interrupt(Source::Queue(queue.index()));
                if bench.kind == Kind::Mmio {
                    // One line for all of them.
                    break;
                }
            }
            assert_eq!(bench.guest.registers.take_isr() & 1, 1);
        }
    });
}

#[test]
fn a_device_that_needs_a_reset() {
    everywhere(|bench| {
        let mut queues = bench.guest.start(EVERYTHING);
        let queue = &mut queues[0];
        queue.set_avail(queue.layout().size + 1);
        bench.guest.registers.notify(0);
        (bench.poke)();
        bench.guest.wait_broken();
        bench.move_out();
        assert!(bench.guest.broken());
        bench.move_out();
        assert!(bench.guest.broken());
        bench.works();
    });
}

#[test]
fn a_device_that_was_never_resumed() {
    everywhere(|bench| {
        let mut queues = bench.guest.start(EVERYTHING);
        for queue in &mut queues {
            bench.work_on(queue, false);
        }
        bench.guest.transport().pause();
        bench.guest.transport().pause();
        let first = bench.guest.save();
        for _ in 0..3 {
            bench.restore(&first).unwrap();
            assert_eq!(bench.guest.save(), first);
        }
        bench.guest.transport().resume();
        for queue in &mut queues {
            bench.work_on(queue, false);
        }
    });
}

#[test]
fn a_device_that_is_reset_before_it_goes_on() {
    everywhere(|bench| {
        drop(bench.guest.start(EVERYTHING));
        let state = bench.guest.save();
        bench.restore(&state).unwrap();
        bench.guest.registers.write_status(0);
        assert!(bench.guest.doorbells.registered().is_empty());
        bench.guest.transport().resume();
        assert_eq!(bench.guest.registers.status(), 0);
        bench.works();
    });
}

#[test]
fn a_device_that_runs_is_not_saved() {
    everywhere(|bench| {
        drop(bench.guest.start(EVERYTHING));
        assert!(bench.guest.transport().save().is_err());
        bench.guest.transport().pause();
        assert!(bench.guest.transport().save().is_ok());
    });
}
