//! Guests that break the rules. The host lives, nothing hangs, the device says that it needs a reset, and
//! after a reset it works.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use devices::virtio::testing::flags::{INDIRECT, NEXT, WRITE};
use devices::virtio::testing::{GuestQueue, HOLE, PATIENCE, QueueLayout, RAM, RAM_END, Source, status};

use super::{Bench, EVERYTHING, PLAIN, everywhere};

/// Something that a guest can do to a ring, by its name.
type Attack = (&'static str, fn(&mut GuestQueue));

/// Something that a guest can do to a queue's registers, by its name.
type Spoiler = (&'static str, fn(&mut QueueLayout));

/// Good memory that buffers can be in.
const SOMEWHERE: u64 = RAM[1].0;

/// One direct descriptor.
fn single(queue: &mut GuestQueue, addr: u64, len: u32, flags: u16, next: u16) {
    queue.set_descriptor(0, addr, len, flags, next);
    queue.publish(0);
}

/// A descriptor that points to the indirect table, with these flags beside INDIRECT.
fn table(queue: &mut GuestQueue, addr: u64, len: u32, flags: u16) {
    single(queue, addr, len, INDIRECT | flags, 1);
}

const ATTACKS: [Attack; 28] = [
    ("a readable buffer in a hole", |q| single(q, HOLE, 16, 0, 0)),
    ("a writable buffer in a hole", |q| single(q, HOLE, 16, WRITE, 0)),
    ("a buffer that runs into a hole", |q| single(q, RAM[0].1 as u64 - 8, 16, WRITE, 0)),
    ("a buffer that runs off the end", |q| single(q, RAM_END - 8, 16, 0, 0)),
    ("a buffer behind all memory", |q| single(q, 1 << 60, 16, WRITE, 0)),
    ("a buffer that wraps around", |q| single(q, u64::MAX - 7, 16, WRITE, 0)),
    ("a readable buffer of 4 GiB", |q| single(q, SOMEWHERE, u32::MAX, 0, 0)),
    ("a writable buffer of 4 GiB", |q| single(q, SOMEWHERE, u32::MAX, WRITE, 0)),
    ("a readable buffer of nothing", |q| single(q, SOMEWHERE, 0, 0, 0)),
    ("a writable buffer of nothing", |q| single(q, SOMEWHERE, 0, WRITE, 0)),
    ("a chain that is its own successor", |q| single(q, SOMEWHERE, 16, NEXT, 0)),
    ("a writable chain that is its own successor", |q| single(q, SOMEWHERE, 16, NEXT | WRITE, 0)),
    ("a loop of two", |q| {
        q.set_descriptor(1, SOMEWHERE, 16, NEXT, 0);
        single(q, SOMEWHERE, 16, NEXT, 1);
    }),
    ("a chain that goes on outside its table", |q| {
        let outside = q.layout().size;
        single(q, SOMEWHERE, 16, NEXT, outside);
    }),
    ("a chain that goes on at 65535", |q| single(q, SOMEWHERE, 16, NEXT, u16::MAX)),
    ("a readable buffer behind a writable one", |q| {
        q.set_descriptor(1, SOMEWHERE, 16, 0, 0);
        single(q, SOMEWHERE, 16, NEXT | WRITE, 1);
    }),
    ("a head outside the table", |q| q.publish(q.layout().size)),
    ("a head of 65535", |q| q.publish(u16::MAX)),
    ("an available index one too far", |q| {
        single(q, SOMEWHERE, 16, 0, 0);
        q.set_avail(q.avail().wrapping_add(q.layout().size));
    }),
    ("an available index half way round", |q| q.set_avail(q.avail().wrapping_add(0x8000))),
    ("an available index that goes back", |q| q.set_avail(q.avail().wrapping_sub(1))),
    ("an indirect table in a hole", |q| table(q, HOLE, 32, 0)),
    ("an indirect table of nothing", |q| table(q, q.indirect_table(), 0, 0)),
    ("an indirect table of one and a half", |q| table(q, q.indirect_table(), 24, 0)),
    ("an indirect table that is chained on", |q| {
        q.set_indirect(0, SOMEWHERE, 16, 0, 0);
        table(q, q.indirect_table(), 16, NEXT);
    }),
    ("an indirect table of 4 GiB", |q| table(q, q.indirect_table(), 0xffff_fff0, 0)),
    ("an indirect table in an indirect table", |q| {
        q.set_indirect(0, q.indirect_table(), 16, INDIRECT, 0);
        table(q, q.indirect_table(), 16, 0);
    }),
    ("a loop in an indirect table", |q| {
        q.set_indirect(0, SOMEWHERE, 16, NEXT, 1);
        q.set_indirect(1, SOMEWHERE, 16, NEXT, 0);
        table(q, q.indirect_table(), 32, 0);
    }),
];

/// The device gives up on its guest, tells it, and is as new after a reset.
fn gives_up(bench: &mut Bench, what: &str) {
    println!("  {what}");
    let start = Instant::now();
    bench.guest.wait_broken();
    bench.guest.wait_interrupt(Source::Config);
    // Whatever the guest does now, short of a reset, changes nothing.
    bench.guest.registers.write_status(bench.guest.registers.status() & !status::NEEDS_RESET);
    for queue in 0..bench.factory.queues {
        bench.guest.registers.notify(queue);
    }
    (bench.poke)();
    assert!(bench.guest.broken());
    bench.works();
    assert!(start.elapsed() < PATIENCE, "{what}: took {:?}", start.elapsed());
}

#[test]
fn broken_rings_and_chains() {
    everywhere(|bench| {
        for index in 0..usize::from(bench.factory.queues) {
            for (name, attack) in ATTACKS {
                let mut queues = bench.guest.start(EVERYTHING);
                attack(&mut queues[index]);
                bench.guest.registers.notify(index as u16);
                gives_up(bench, name);
            }
        }
    });
}

#[test]
fn a_broken_chain_behind_good_ones() {
    everywhere(|bench| {
        for index in 0..bench.factory.queues {
            let mut queues = bench.guest.start(EVERYTHING);
            let queue = &mut queues[usize::from(index)];
            bench.work_on(queue, false);
            let last = queue.layout().size - 1;
            queue.set_descriptor(last, HOLE, 1, 0, 0);
            queue.publish(last);
            bench.guest.registers.notify(index);
            gives_up(bench, "a broken chain behind a good one");
        }
    });
}

#[test]
fn indirect_where_none_was_agreed_on() {
    everywhere(|bench| {
        for index in 0..bench.factory.queues {
            let mut queues = bench.guest.start(PLAIN);
            let request = (bench.factory.request)(&mut bench.guest, index);
            queues[usize::from(index)].add_indirect(&request.buffers);
            bench.guest.registers.notify(index);
            gives_up(bench, "an indirect table that was not agreed on");
        }
    });
}

#[test]
fn a_ring_broken_while_the_device_is_stopped() {
    everywhere(|bench| {
        for index in 0..bench.factory.queues {
            let mut queues = bench.guest.start(EVERYTHING);
            bench.guest.transport().pause();
            queues[usize::from(index)].set_avail(0x4000);
            bench.guest.transport().resume();
            bench.guest.wait_broken();
            // A device that needs a reset does not come back by being stopped.
            bench.guest.transport().pause();
            bench.guest.transport().resume();
            gives_up(bench, "an index that jumps while the device is stopped");
        }
    });
}

#[test]
fn queues_that_cannot_be() {
    let wrong: [Spoiler; 14] = [
        ("a size of 0", |q| q.size = 0),
        ("a size of 3", |q| q.size = 3),
        ("twice the largest size", |q| q.size *= 2),
        ("a size of 65535", |q| q.size = u16::MAX),
        ("descriptors in a hole", |q| q.desc = HOLE),
        ("descriptors off the end", |q| q.desc = RAM_END - 16),
        ("descriptors that wrap around", |q| q.desc = u64::MAX - 15),
        ("misaligned descriptors", |q| q.desc += 8),
        ("an available ring in a hole", |q| q.avail = HOLE),
        ("a misaligned available ring", |q| q.avail += 1),
        ("an available ring that wraps around", |q| q.avail = u64::MAX - 1),
        ("a used ring in a hole", |q| q.used = HOLE),
        ("a used ring off the end", |q| q.used = RAM_END - 8),
        ("a misaligned used ring", |q| q.used += 2),
    ];
    everywhere(|bench| {
        for index in 0..bench.factory.queues {
            for (name, spoil) in wrong {
                let accepted = bench.guest.negotiate(EVERYTHING);
                for queue in 0..bench.factory.queues {
                    let size = bench.guest.registers.queue_max(queue);
                    let ring = GuestQueue::new(&mut bench.guest, queue, size, accepted != 0);
                    let mut layout = ring.layout();
                    if queue == index {
                        spoil(&mut layout);
                    }
                    bench.guest.registers.set_queue(queue, &layout);
                    bench.guest.registers.enable_queue(queue);
                }
                bench.guest.driver_ok();
                assert!(bench.guest.doorbells.registered().is_empty());
                gives_up(bench, name);
            }
        }
    });
}

#[test]
fn no_queues_at_all() {
    everywhere(|bench| {
        bench.guest.negotiate(EVERYTHING);
        bench.guest.driver_ok();
        for queue in 0..bench.factory.queues {
            bench.guest.registers.notify(queue);
        }
        bench.works();
    });
}

#[test]
fn queues_used_before_the_driver_is_ready() {
    everywhere(|bench| {
        let accepted = bench.guest.negotiate(EVERYTHING);
        let mut queues = bench.guest.enable_queues(accepted);
        for queue in &mut queues {
            let request = (bench.factory.request)(&mut bench.guest, queue.index());
            queue.add(&request.buffers);
            bench.guest.registers.notify(queue.index());
            bench.guest.registers.notify_slowly(queue.index());
        }
        (bench.poke)();
        std::thread::sleep(Duration::from_millis(2));
        assert!(queues.iter().all(|queue| queue.used_index() == 0));
        // What waited is served then.
        bench.guest.driver_ok();
        for queue in &mut queues {
            queue.wait_used();
        }
        bench.works();
    });
}

#[test]
fn queues_that_do_not_exist() {
    everywhere(|bench| {
        let mut queues = bench.guest.start(EVERYTHING);
        for queue in [bench.factory.queues, 0x3ff, 0x7fff, u16::MAX] {
            bench.guest.registers.notify(queue);
            bench.guest.registers.notify_slowly(queue);
            bench.guest.registers.set_queue(queue, &queues[0].layout());
            bench.guest.registers.enable_queue(queue);
            assert!(!bench.guest.registers.queue_enabled(queue));
        }
        for queue in &mut queues {
            bench.work_on(queue, false);
        }
    });
}

#[test]
fn writes_everywhere() {
    everywhere(|bench| {
        bench.guest.registers.scribble();
        bench.works();
        bench.guest.registers.scribble();
        bench.works();
    });
}

/// A guest that makes requests available without end, and never looks at what comes back, cannot keep its
/// device from being reset or stopped.
#[test]
fn a_flood_of_requests() {
    everywhere(|bench| {
        for index in 0..usize::from(bench.factory.queues) {
            for pause in [false, true] {
                let mut queues = bench.guest.start(EVERYTHING);
                let request = (bench.factory.request)(&mut bench.guest, index as u16);
                let queue = &mut queues[index];
                let end = AtomicBool::new(false);
                bench.guest.registers.notify(index as u16);
                let took = std::thread::scope(|scope| {
                    scope.spawn(|| {
                        while !end.load(Ordering::SeqCst) {
                            let ahead = queue.avail().wrapping_sub(queue.used_index());
                            if ahead < queue.layout().size / 2 {
                                queue.add(&request.buffers);
                            }
                        }
                    });
                    for _ in 0..20 {
                        (bench.poke)();
                        bench.guest.registers.notify(index as u16);
                    }
                    std::thread::sleep(Duration::from_millis(5));
                    let start = Instant::now();
                    if pause {
                        bench.guest.transport().pause();
                    } else {
                        bench.guest.registers.write_status(0);
                    }
                    let took = start.elapsed();
                    end.store(true, Ordering::SeqCst);
                    took
                });
                assert!(took < PATIENCE, "{took:?}");
            }
        }
        bench.works();
    });
}
