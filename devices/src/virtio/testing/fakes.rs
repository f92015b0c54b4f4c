//! What the vmm is to a device, recorded instead of done: the bus, doorbells and the interrupt controller.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::{Bus, Effect};
use crate::irq::{Doorbell, Doorbells, IrqLine, MsiController, MsiMessage, MsiVector};

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Doorbells as KVM has them: a bell is registered once, and taken back with the event it was registered with.
#[derive(Default)]
pub struct FakeDoorbells(Mutex<Vec<(Doorbell, EventFd)>>);

impl FakeDoorbells {
    /// What is registered now.
    #[must_use]
    pub fn registered(&self) -> Vec<Doorbell> {
        lock(&self.0).iter().map(|(bell, _)| *bell).collect()
    }

    /// The guest writes `data` at `address`: whether that rang a bell.
    pub fn ring(&self, address: u64, data: &[u8]) -> bool {
        let value = <[u8; 4]>::try_from(data).ok().map(u32::from_le_bytes);
        let bells = lock(&self.0);
        let bell =
            bells.iter().find(|(b, _)| b.address == address && (b.value.is_none() || b.value == value));
        bell.is_some_and(|(_, event)| event.write(1).is_ok())
    }
}

impl Doorbells for FakeDoorbells {
    fn register(&self, bell: Doorbell, event: &EventFd) -> io::Result<()> {
        let mut bells = lock(&self.0);
        if bells.iter().any(|(other, _)| *other == bell) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        bells.push((bell, event.try_clone()?));
        Ok(())
    }

    fn unregister(&self, bell: Doorbell, _event: &EventFd) -> io::Result<()> {
        let mut bells = lock(&self.0);
        let at = bells.iter().position(|(other, _)| *other == bell).ok_or(io::ErrorKind::NotFound)?;
        bells.remove(at);
        Ok(())
    }
}

/// The guest's physical addresses: a bus, with doorbells before it.
#[derive(Clone)]
pub struct FakeBus {
    /// What answers where no bell rings.
    pub bus: Arc<Bus>,
    doorbells: Arc<FakeDoorbells>,
}

impl FakeBus {
    /// An empty bus.
    #[must_use]
    pub fn new(doorbells: Arc<FakeDoorbells>) -> Self {
        Self { bus: Arc::default(), doorbells }
    }

    /// The doorbells, as a device gets them.
    #[must_use]
    pub fn doorbells(&self) -> Arc<dyn Doorbells> {
        Arc::clone(&self.doorbells) as Arc<dyn Doorbells>
    }

    /// The guest writes.
    pub fn write(&self, address: u64, data: &[u8]) -> Effect {
        if self.doorbells.ring(address, data) { Effect::None } else { self.bus.write(address, data) }
    }

    /// The guest reads.
    #[must_use]
    pub fn read<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut data = [0; N];
        self.bus.read(address, &mut data);
        data
    }
}

/// An MSI controller that remembers where vectors are routed.
#[derive(Default)]
pub struct FakeMsi(Mutex<Vec<(MsiVector, Option<MsiMessage>)>>);

impl FakeMsi {
    /// How often the guest was interrupted by messages with this data since the last call.
    pub fn take(&self, data: u32) -> u64 {
        let vectors = lock(&self.0);
        let routed = vectors.iter().filter(|(_, message)| message.is_some_and(|m| m.data == data));
        routed.map(|(vector, _)| vector.line.event().read().unwrap_or(0)).sum()
    }

    /// How many vectors are given out.
    #[must_use]
    pub fn allocated(&self) -> usize {
        lock(&self.0).len()
    }
}

impl MsiController for FakeMsi {
    fn allocate(&self) -> io::Result<MsiVector> {
        let mut vectors = lock(&self.0);
        let id = (0..).find(|id| vectors.iter().all(|(v, _)| v.id != *id)).unwrap_or(0);
        let vector = MsiVector { id, line: IrqLine::new(EventFd::new(EFD_NONBLOCK)?) };
        vectors.push((vector.clone(), None));
        Ok(vector)
    }

    fn route(&self, vector: &MsiVector, message: Option<MsiMessage>) -> io::Result<()> {
        let mut vectors = lock(&self.0);
        let entry = vectors.iter_mut().find(|(v, _)| v.id == vector.id).ok_or(io::ErrorKind::NotFound)?;
        entry.1 = message;
        Ok(())
    }

    fn free(&self, vector: MsiVector) {
        lock(&self.0).retain(|(v, _)| v.id != vector.id);
    }
}
