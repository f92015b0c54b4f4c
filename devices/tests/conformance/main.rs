//! One suite for every virtio device on both transports: the rules of virtio 1.2, and a guest that breaks them.
//!
//! A device joins by a [`factories::Factory`]. The suite drives it through its registers alone, as
//! `devices::virtio::testing` does, so that it says nothing about how a device works inside.

mod factories;
mod hostile;
mod protocol;
mod saved;
mod transports;
mod untrusted;

use devices::virtio::testing::{Guest, GuestQueue, KINDS, Kind, features};

use devices::virtio::transport::{TransportError, TransportState};

use factories::{Factory, Made, all_devices};

/// What drivers of today accept.
const EVERYTHING: u64 = u64::MAX;
/// No ring features.
const PLAIN: u64 = !(features::EVENT_IDX | features::INDIRECT);

/// A device in a machine.
struct Bench {
    guest: Guest,
    factory: Factory,
    kind: Kind,
    poke: Box<dyn Fn()>,
}

impl Bench {
    fn new(factory: Factory, kind: Kind) -> Self {
        let Made { device, poke } = (factory.make)();
        Self { guest: Guest::new(kind, device), factory, kind, poke }
    }

    /// Put a good request in `queue` and have it served.
    fn work_on(&mut self, queue: &mut GuestQueue, indirect: bool) {
        let request = (self.factory.request)(&mut self.guest, queue.index());
        let head = if indirect { queue.add_indirect(&request.buffers) } else { queue.add(&request.buffers) };
        self.guest.registers.notify(queue.index());
        (self.poke)();
        let (used, len) = queue.wait_used();
        assert_eq!(used, u32::from(head), "{}: requests come back one by one", self.factory.name);
        (request.check)(&self.guest, len);
    }

    /// The same guest with the same memory on a machine whose device is new and becomes what `state` says. It is paused.
    fn restore(&mut self, state: &TransportState) -> Result<(), TransportError> {
        let Made { device, poke } = (self.factory.make)();
        self.guest.restore(device, state)?;
        self.poke = poke;
        Ok(())
    }

    /// Save the device as a file would, and go on with another one in its place on another machine.
    fn move_out(&mut self) {
        let state = self.guest.save();
        let file = serde_json::to_string(&state).expect("JSON");
        assert_eq!(serde_json::from_str::<TransportState>(&file).expect("a state"), state);
        self.restore(&state).expect("a state that was saved");
        assert_eq!(self.guest.transport().save().expect("it is paused"), state, "nothing is lost or made up");
        self.guest.transport().resume();
    }

    /// Whatever came before: the device can be initialised and works, on every queue.
    fn works(&mut self) {
        let mut queues = self.guest.start(EVERYTHING);
        for queue in &mut queues {
            self.work_on(queue, false);
        }
    }
}

/// Run `test` with every device on both transports.
fn everywhere(test: impl Fn(&mut Bench)) {
    for factory in all_devices() {
        for kind in KINDS {
            println!("{} over {kind:?}", factory.name);
            test(&mut Bench::new(factory, kind));
        }
    }
}
