//! The rules of virtio 1.2, kept by a guest that keeps them.

use std::time::Duration;

use devices::virtio::testing::{Kind, Source, eventually, features, status};

use super::{EVERYTHING, PLAIN, everywhere};

const ACKNOWLEDGED: u8 = status::ACKNOWLEDGE | status::DRIVER;
const AGREED: u8 = ACKNOWLEDGED | status::FEATURES_OK;

#[test]
fn a_device_says_who_it_is_and_what_it_can_do() {
    everywhere(|bench| {
        let registers = &bench.guest.registers;
        assert_eq!(registers.device_id(), bench.factory.kind as u32);
        assert_eq!(registers.status(), 0);
        let ring = features::VERSION_1 | features::EVENT_IDX | features::INDIRECT;
        assert_eq!(registers.device_features() & ring, ring);
        for queue in 0..bench.factory.queues {
            assert!(registers.queue_max(queue).is_power_of_two());
            assert!(!registers.queue_enabled(queue));
        }
        assert_eq!(registers.queue_max(bench.factory.queues), 0);
        assert_eq!(registers.queue_max(u16::MAX), 0);
    });
}

#[test]
fn features_must_be_offered_and_modern() {
    everywhere(|bench| {
        let registers = &bench.guest.registers;
        let offered = registers.device_features();
        for bad in [0, offered & !features::VERSION_1, features::VERSION_1 | 1 << 63, EVERYTHING] {
            registers.write_status(0);
            registers.write_status(ACKNOWLEDGED);
            registers.write_driver_features(bad);
            registers.write_status(AGREED);
            assert_eq!(registers.status(), ACKNOWLEDGED, "{bad:#x}");
            // A driver that does not look: the device does not start.
            registers.write_status(AGREED | status::DRIVER_OK);
            assert_eq!(registers.status(), ACKNOWLEDGED, "{bad:#x}");
            // One that looks may try again.
            registers.write_driver_features(offered);
            registers.write_status(AGREED);
            assert_eq!(registers.status(), AGREED);
        }
        bench.works();
    });
}

#[test]
fn features_are_frozen_once_agreed_on() {
    everywhere(|bench| {
        bench.guest.negotiate(PLAIN);
        bench.guest.registers.write_driver_features(EVERYTHING);
        let mut queues = bench.guest.enable_queues(0);
        bench.guest.driver_ok();
        for queue in &mut queues {
            // Would be wrong with EVENT_IDX, where the flag means nothing and 0 was passed long ago.
            bench.work_on(queue, false);
            bench.work_on(queue, false);
        }
        assert!(!bench.guest.broken());
    });
}

#[test]
fn the_status_goes_forward_step_by_step() {
    everywhere(|bench| {
        let registers = &bench.guest.registers;
        for skipping in
            [status::DRIVER, status::FEATURES_OK, status::DRIVER_OK, status::ACKNOWLEDGE | status::DRIVER_OK]
        {
            registers.write_status(0);
            registers.write_status(skipping);
            assert_eq!(registers.status(), skipping & status::ACKNOWLEDGE, "{skipping:#x}");
        }
        registers.write_status(0);
        registers.write_status(ACKNOWLEDGED);
        for backwards in [status::ACKNOWLEDGE, status::DRIVER, status::FEATURES_OK] {
            registers.write_status(backwards);
            assert_eq!(registers.status(), ACKNOWLEDGED, "{backwards:#x}");
        }
        registers.write_status(ACKNOWLEDGED | status::NEEDS_RESET);
        assert_eq!(registers.status(), ACKNOWLEDGED, "the device alone says that it needs a reset");
        registers.write_status(ACKNOWLEDGED | status::FAILED);
        registers.write_status(AGREED | status::FAILED);
        assert_eq!(registers.status(), ACKNOWLEDGED | status::FAILED);
        bench.works();
    });
}

#[test]
fn requests_are_served_with_every_ring_feature() {
    everywhere(|bench| {
        for (ring, indirect) in [
            (0, false),
            (features::EVENT_IDX, false),
            (features::INDIRECT, true),
            (features::EVENT_IDX | features::INDIRECT, true),
        ] {
            let mut queues = bench.guest.start(PLAIN | ring);
            for queue in &mut queues {
                // Indexes go round the ring, and indirect requests go beside direct ones.
                for i in 0..u32::from(queue.layout().size) + 3 {
                    bench.work_on(queue, indirect && i % 3 != 0);
                }
            }
        }
    });
}

#[test]
fn used_buffers_interrupt_unless_the_guest_asks_for_silence() {
    everywhere(|bench| {
        let mut queues = bench.guest.start(PLAIN);
        for queue in &mut queues {
            let source = Source::Queue(queue.index());
            bench.work_on(queue, false);
            bench.guest.wait_interrupt(source);
            assert_eq!(bench.guest.registers.take_isr(), 1);
            assert_eq!(bench.guest.registers.take_isr(), 0);
            queue.set_avail_flags(1);
            bench.work_on(queue, false);
            // Pausing waits until the device has done all it does.
            bench.guest.transport().pause();
            assert_eq!(bench.guest.registers.take_interrupts(source), 0);
            assert_eq!(bench.guest.registers.take_isr(), 0);
            bench.guest.transport().resume();
        }
    });
}

#[test]
fn event_idx_interrupts_where_the_guest_says() {
    everywhere(|bench| {
        let mut queues = bench.guest.start(PLAIN | features::EVENT_IDX);
        for queue in &mut queues {
            let source = Source::Queue(queue.index());
            queue.set_used_event(1);
            bench.work_on(queue, false);
            bench.guest.transport().pause();
            assert_eq!(bench.guest.registers.take_interrupts(source), 0, "the first is not the second");
            bench.guest.transport().resume();
            bench.work_on(queue, false);
            bench.guest.wait_interrupt(source);
            bench.guest.registers.take_isr();
        }
    });
}

#[test]
fn a_waiting_device_wants_to_be_rung() {
    everywhere(|bench| {
        for ring in [0, features::EVENT_IDX] {
            let mut queues = bench.guest.start(PLAIN | ring);
            for queue in &mut queues {
                for _ in 0..3 {
                    bench.work_on(queue, false);
                }
                // It may look for more by itself for a while.
                assert!(eventually(|| queue.wants_kick()), "queue {} wants to be rung", queue.index());
                bench.work_on(queue, false);
            }
        }
    });
}

#[test]
fn a_stopped_device_goes_on_where_it_was() {
    everywhere(|bench| {
        let mut queues = bench.guest.start(EVERYTHING);
        for round in 0..3 {
            for queue in &mut queues {
                bench.work_on(queue, round == 1);
            }
            bench.guest.transport().pause();
            // Twice is once.
            bench.guest.transport().pause();
            let before: Vec<_> = queues.iter().map(|queue| queue.used_index()).collect();
            let mut waiting = Vec::new();
            for queue in &mut queues {
                let request = (bench.factory.request)(&mut bench.guest, queue.index());
                queue.add(&request.buffers);
                bench.guest.registers.notify(queue.index());
                waiting.push(request);
            }
            (bench.poke)();
            std::thread::sleep(Duration::from_millis(2));
            let after: Vec<_> = queues.iter().map(|queue| queue.used_index()).collect();
            assert_eq!(before, after, "a stopped device does nothing");
            bench.guest.transport().resume();
            bench.guest.transport().resume();
            for (queue, request) in queues.iter_mut().zip(waiting) {
                let (_, len) = queue.wait_used();
                (request.check)(&bench.guest, len);
            }
        }
        assert!(!bench.guest.broken());
    });
}

#[test]
fn reset_takes_everything_back() {
    everywhere(|bench| {
        bench.works();
        bench.guest.registers.write_status(0);
        let registers = &bench.guest.registers;
        assert_eq!((registers.status(), registers.take_isr()), (0, 0));
        assert!(bench.guest.doorbells.registered().is_empty());
        for queue in 0..bench.factory.queues {
            assert!(!registers.queue_enabled(queue));
        }
        // Twice is once.
        bench.guest.registers.write_status(0);
        assert_eq!(bench.guest.registers.status(), 0);
        bench.works();
        // Also while the vmm has it stopped.
        bench.guest.transport().pause();
        bench.guest.registers.write_status(0);
        bench.guest.transport().resume();
        assert_eq!(bench.guest.registers.status(), 0);
        bench.works();
    });
}

#[test]
fn reset_in_mid_flight_ends_all_writing() {
    everywhere(|bench| {
        for round in 0..30 {
            let mut queues = bench.guest.start(EVERYTHING);
            for queue in &mut queues {
                for _ in 0..8 {
                    let request = (bench.factory.request)(&mut bench.guest, queue.index());
                    queue.add(&request.buffers);
                }
                bench.guest.registers.notify(queue.index());
            }
            (bench.poke)();
            std::thread::sleep(Duration::from_micros(20 * round));
            bench.guest.registers.write_status(0);
            let used: Vec<_> = queues.iter().map(|queue| queue.used_index()).collect();
            std::thread::sleep(Duration::from_micros(500));
            let later: Vec<_> = queues.iter().map(|queue| queue.used_index()).collect();
            assert_eq!(used, later);
        }
        bench.works();
    });
}

#[test]
fn doorbells_ring_while_the_device_is_active() {
    everywhere(|bench| {
        assert!(bench.guest.doorbells.registered().is_empty());
        let mut queues = bench.guest.start(EVERYTHING);
        assert_eq!(bench.guest.doorbells.registered().len(), queues.len());
        // A write that the doorbell misses rings as well.
        for queue in &mut queues {
            let request = (bench.factory.request)(&mut bench.guest, queue.index());
            queue.add(&request.buffers);
            bench.guest.registers.notify_slowly(queue.index());
            (bench.poke)();
            let (_, len) = queue.wait_used();
            (request.check)(&bench.guest, len);
        }
    });
}

#[test]
fn configuration_space_has_an_end() {
    everywhere(|bench| {
        let registers = &bench.guest.registers;
        let mut before = [0; 256];
        registers.read_config(0, &mut before);
        for width in [1, 2, 3, 4, 8] {
            for offset in 0..0x100 {
                let mut data = vec![0xff; width];
                registers.read_config(offset, &mut data);
                let end = before.len().min(offset as usize + width);
                let known = &before[offset as usize..end];
                assert_eq!(&data[..known.len()], known, "{width} at {offset:#x}");
            }
            for offset in [0x400, 0xe00, 0xef8] {
                let mut data = vec![0xff; width];
                registers.read_config(offset, &mut data);
                assert_eq!(data, vec![0; width]);
                registers.write_config(offset, &data);
            }
        }
        bench.works();
    });
}

#[test]
fn queue_registers_are_frozen_while_the_device_is_active() {
    everywhere(|bench| {
        let mut queues = bench.guest.start(EVERYTHING);
        for queue in &mut queues {
            let mut wrong = queue.layout();
            wrong.size = 1;
            wrong.desc = 0x10;
            wrong.avail = 0x10;
            wrong.used = 0x10;
            bench.guest.registers.set_queue(queue.index(), &wrong);
            bench.guest.transport().pause();
            bench.guest.transport().resume();
            bench.work_on(queue, false);
        }
    });
}

/// Over PCI a queue cannot be taken back without a reset (4.1.4.3.2); the guest's write changes nothing.
#[test]
fn a_queue_that_is_taken_back_is_left_alone() {
    everywhere(|bench| {
        for index in 0..bench.factory.queues {
            let mut queues = bench.guest.start(EVERYTHING);
            for queue in &mut queues {
                bench.work_on(queue, false);
            }
            bench.guest.registers.disable_queue(index);
            let gone = !bench.guest.registers.queue_enabled(index);
            assert_eq!(gone, bench.kind == Kind::Mmio);
            let queue = &mut queues[usize::from(index)];
            if gone {
                // All that it has can be used for something else now.
                let before = queue.used_index();
                queue.set_avail(0x4000);
                bench.guest.registers.notify(index);
                bench.guest.registers.notify_slowly(index);
                std::thread::sleep(Duration::from_millis(1));
                assert_eq!(queue.used_index(), before);
            } else {
                bench.work_on(queue, false);
            }
            assert!(!bench.guest.broken());
        }
        bench.works();
    });
}
