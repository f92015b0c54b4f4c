//! MSI-X: the table of vectors that a function interrupts by (PCI 3.0 §6.8.2).
//!
//! [`MsixTable`] is the registers, a pure value. [`Msix`] is the shell around it that a function shares with
//! its device threads: register accesses come from vCPU threads through the function's BAR, [`Msix::trigger`]
//! from any thread.
//!
//! A vector of the machine is allocated when the guest first unmasks its entry, so that what a function
//! offers and the guest never uses costs nothing, and is kept until the function goes away: guests
//! mask and unmask at every change of affinity, and taking an interrupt out of KVM waits for all its users.
//! For the same reason masking leaves the route as it is; a masked entry is one that `trigger` does not raise.
//! So whoever raises a vector's line does it through `trigger`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use crate::irq::{MsiController, MsiMessage, MsiVector};
use crate::state::Hex;

/// Message control: all vectors masked.
const CONTROL_MASKED: u16 = 1 << 14;
/// Message control: MSI-X enabled.
const CONTROL_ENABLED: u16 = 1 << 15;
/// Vector control: this vector masked.
const VECTOR_MASKED: u32 = 1;

/// Bytes of an entry: address low and high, data, vector control.
const ENTRY_LEN: u64 = 16;
const DWORDS: usize = 4;

/// Bytes that the table of this many vectors takes in its BAR.
#[must_use]
pub fn table_len(vectors: u16) -> u64 {
    u64::from(vectors) * ENTRY_LEN
}

/// Bytes that the pending bits of this many vectors take in their BAR.
#[must_use]
pub fn pba_len(vectors: u16) -> u64 {
    u64::from(vectors).div_ceil(64) * 8
}

/// What is saved of the vectors. The message control register is in configuration space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MsixState {
    /// The table, 16 bytes a vector.
    pub table: Hex,
    /// The pending bits.
    pub pending: Hex,
}

/// The registers: entries, pending bits, and what of the message control register matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsixTable {
    entries: Vec<[u32; DWORDS]>,
    pending: Vec<u64>,
    control: u16,
}

impl MsixTable {
    /// All vectors masked, and MSI-X disabled.
    #[must_use]
    pub fn new(vectors: u16) -> Self {
        Self {
            entries: vec![[0, 0, 0, VECTOR_MASKED]; usize::from(vectors)],
            pending: vec![0; usize::from(vectors.div_ceil(64))],
            control: 0,
        }
    }

    /// As it was saved with this message control register.
    ///
    /// # Errors
    /// The field that cannot be, and why.
    pub fn restore(vectors: u16, state: &MsixState, control: u16) -> Result<Self, (&'static str, String)> {
        let mut table = Self { control, ..Self::new(vectors) };
        let wrong = |field, is: &Hex, wanted: u64| {
            Err((field, format!("{} bytes where {vectors} vectors take {wanted}", is.0.len())))
        };
        if state.table.0.len() as u64 != table_len(vectors) {
            return wrong("table", &state.table, table_len(vectors));
        }
        if state.pending.0.len() as u64 != pba_len(vectors) {
            return wrong("pending", &state.pending, pba_len(vectors));
        }
        let (dwords, _) = state.table.0.as_chunks::<4>();
        for (at, dword) in (0..).step_by(4).zip(dwords) {
            table.write(at, dword);
        }
        let (quads, _) = state.pending.0.as_chunks::<8>();
        table.pending = quads.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        let beyond =
            (u32::from(vectors)..64 * table.pending.len() as u32).any(|vector| table.is_pending(vector));
        if beyond || !table.enabled() && table.pending.iter().any(|bits| *bits != 0) {
            return Err(("pending", "a vector that cannot be pending is".to_owned()));
        }
        Ok(table)
    }

    /// To be saved.
    #[must_use]
    pub fn save(&self) -> MsixState {
        MsixState {
            table: self
                .entries
                .as_flattened()
                .iter()
                .flat_map(|dword| dword.to_le_bytes())
                .collect::<Vec<_>>()
                .into(),
            pending: self.pending.iter().flat_map(|bits| bits.to_le_bytes()).collect::<Vec<_>>().into(),
        }
    }

    fn is_pending(&self, vector: u32) -> bool {
        self.pending.get(vector as usize / 64).is_some_and(|bits| bits >> (vector % 64) & 1 != 0)
    }

    /// Whether the guest uses MSI-X.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.control & CONTROL_ENABLED != 0
    }

    /// The guest wrote the message control register.
    pub fn set_control(&mut self, control: u16) {
        self.control = control;
        if !self.enabled() {
            self.pending.fill(0);
        }
    }

    /// The guest reads the table.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        read_bytes(offset, data, |at| {
            let dwords = self.entries.get(at / DWORDS / 4)?;
            Some(dwords.get(at / 4 % DWORDS)?.to_le_bytes()[at % 4])
        });
    }

    /// The guest reads the pending bits.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        read_bytes(offset, data, |at| Some(self.pending.get(at / 8)?.to_le_bytes()[at % 8]));
    }

    /// The guest writes the table. Only aligned accesses of 4 or 8 bytes are defined (§6.8.2); others are
    /// dropped. Returns the vector whose entry changed.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<u16> {
        let len = data.len();
        let at = usize::try_from(offset).ok()?;
        if !(len == 4 || len == 8) || !at.is_multiple_of(len) {
            return None;
        }
        let vector = at / 4 / DWORDS;
        let entry = self.entries.get_mut(vector)?;
        for (dword, bytes) in entry.iter_mut().skip(at / 4 % DWORDS).zip(data.chunks_exact(4)) {
            *dword = bytes.try_into().map_or(0, u32::from_le_bytes);
        }
        entry[3] &= VECTOR_MASKED;
        u16::try_from(vector).ok()
    }

    /// Where this vector's interrupt goes now; `None` if it is masked, or there is no such vector.
    #[must_use]
    pub fn message(&self, vector: u16) -> Option<MsiMessage> {
        let &[low, high, data, control] = self.entries.get(usize::from(vector))?;
        let open = self.enabled() && self.control & CONTROL_MASKED == 0 && control & VECTOR_MASKED == 0;
        open.then_some(MsiMessage { address: u64::from(high) << 32 | u64::from(low), data })
    }

    /// Remember that a masked vector wants to interrupt. Without MSI-X there is nothing to remember.
    pub fn set_pending(&mut self, vector: u16) {
        if self.enabled()
            && usize::from(vector) < self.entries.len()
            && let Some(bits) = self.pending.get_mut(usize::from(vector / 64))
        {
            *bits |= 1 << (vector % 64);
        }
    }

    /// Whether this vector wanted to interrupt; forgets it.
    pub fn take_pending(&mut self, vector: u16) -> bool {
        let Some(bits) = self.pending.get_mut(usize::from(vector / 64)) else { return false };
        let bit = 1 << (vector % 64);
        let was = *bits & bit != 0;
        *bits &= !bit;
        was
    }
}

/// Fill `data` from the bytes at `offset`; zero where there are none.
fn read_bytes(offset: u64, data: &mut [u8], byte: impl Fn(usize) -> Option<u8>) {
    for (i, out) in data.iter_mut().enumerate() {
        let at = usize::try_from(offset).ok().and_then(|o| o.checked_add(i));
        *out = at.and_then(&byte).unwrap_or(0);
    }
}

/// A vector as `trigger` sees it, without a lock.
///
/// ```text
///           unmask: allocate once, route, then open        trigger
///  closed ─────────────────────────────────────────► open ─────────► line raised
///    ▲ │ trigger: pending, under the lock              │
///    │ └──────────────► raised by the next unmask      │
///    └────────────────────── mask ─────────────────────┘
/// ```
///
/// A trigger that sees `open` races with a mask like a message in flight does: it is delivered, to where the
/// entry pointed or points next. A trigger that sees `closed` looks again under the lock that
/// unmasking takes, so it is either raised there or pending before the unmask looks.
#[derive(Default)]
struct Gate {
    open: AtomicBool,
    vector: OnceLock<MsiVector>,
}

/// What the lock protects.
struct Inner {
    table: MsixTable,
    /// Where each vector is routed, whether open or not.
    routes: Vec<Option<MsiMessage>>,
    /// A refused route was logged.
    complained: bool,
}

/// A function's MSI-X vectors, shared by its registers and its threads.
///
/// Lock order: the function's own lock, then this one, then whatever the controller takes.
pub struct Msix {
    inner: Mutex<Inner>,
    gates: Box<[Gate]>,
    controller: Arc<dyn MsiController>,
}

impl Msix {
    /// `vectors` (1 to 2048) vectors, none of them allocated yet.
    #[must_use]
    pub fn new(vectors: u16, controller: Arc<dyn MsiController>) -> Self {
        let inner = Inner {
            table: MsixTable::new(vectors),
            routes: vec![None; usize::from(vectors)],
            complained: false,
        };
        Self { inner: Mutex::new(inner), gates: (0..vectors).map(|_| Gate::default()).collect(), controller }
    }

    /// Become what was saved with this message control register. Vectors that are open are allocated and routed, but what is
    /// pending stays so until [`Msix::raise_pending`]: the interrupt controllers may not be what they were yet.
    ///
    /// # Errors
    /// The field that cannot be, and why.
    pub(crate) fn restore(&self, state: &MsixState, control: u16) -> Result<(), (&'static str, String)> {
        let table = MsixTable::restore(self.vectors(), state, control)?;
        let mut inner = self.lock();
        inner.table = table;
        for vector in 0..self.vectors() {
            self.settle_gate(&mut inner, vector);
        }
        Ok(())
    }

    /// To be saved.
    pub(crate) fn save(&self) -> MsixState {
        self.lock().table.save()
    }

    /// Interrupt by every vector that is pending and open.
    pub(crate) fn raise_pending(&self) {
        let mut inner = self.lock();
        for vector in 0..self.vectors() {
            self.settle(&mut inner, vector);
        }
    }

    /// How many vectors there are.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        self.gates.len() as u16
    }

    /// Whether the guest uses MSI-X.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.lock().table.enabled()
    }

    /// Interrupt by `vector`: now if the guest has it unmasked, else as soon as it unmasks it. A vector that
    /// does not exist (such as virtio's "none", 0xffff) or a guest that does not use MSI-X hears nothing.
    pub fn trigger(&self, vector: u16) {
        let Some(gate) = self.gates.get(usize::from(vector)) else { return };
        if gate.raise() {
            return;
        }
        let mut inner = self.lock();
        if !gate.raise() {
            inner.table.set_pending(vector);
        }
    }

    /// The guest reads the table, at `offset` bytes from its start.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        self.lock().table.read(offset, data);
    }

    /// The guest writes the table, at `offset` bytes from its start.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let mut inner = self.lock();
        if let Some(vector) = inner.table.write(offset, data) {
            self.settle(&mut inner, vector);
        }
    }

    /// The guest reads the pending bits, at `offset` bytes from their start. It cannot write them.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        self.lock().table.read_pending(offset, data);
    }

    /// The guest wrote the message control register ([`super::Written::msix_control`]).
    pub fn set_control(&self, control: u16) {
        let mut inner = self.lock();
        inner.table.set_control(control);
        for vector in 0..self.vectors() {
            self.settle(&mut inner, vector);
        }
    }

    /// Make a vector's gate and route follow its entry, and interrupt if it waited for that.
    fn settle(&self, inner: &mut Inner, vector: u16) {
        if let Some(gate) = self.settle_gate(inner, vector)
            && inner.table.take_pending(vector)
        {
            gate.raise();
        }
    }

    /// Make a vector's gate and route follow its entry. The gate, if it is open now.
    fn settle_gate(&self, inner: &mut Inner, vector: u16) -> Option<&Gate> {
        let gate = self.gates.get(usize::from(vector))?;
        let message = inner.table.message(vector);
        let open = message.is_some_and(|message| self.route(inner, gate, vector, message));
        gate.open.store(open, Ordering::Release);
        open.then_some(gate)
    }

    /// Route a vector as `message`, if it is not. Returns whether it is.
    fn route(&self, inner: &mut Inner, gate: &Gate, vector: u16, message: MsiMessage) -> bool {
        let Some(current) = inner.routes.get_mut(usize::from(vector)) else { return false };
        if *current == Some(message) {
            return true;
        }
        let routed = gate.allocated(&*self.controller).and_then(|v| self.controller.route(v, Some(message)));
        match routed {
            Ok(()) => *current = Some(message),
            Err(error) if !inner.complained => {
                inner.complained = true;
                log::warn!("MSI-X vector {vector} cannot be routed as {message:x?}: {error}");
            }
            Err(_) => {}
        }
        *current == Some(message)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Msix {
    fn drop(&mut self) {
        for gate in &mut self.gates {
            if let Some(vector) = gate.vector.take() {
                self.controller.free(vector);
            }
        }
    }
}

impl Gate {
    /// Raise the line if the gate is open; returns whether it was.
    fn raise(&self) -> bool {
        match self.vector.get() {
            Some(vector) if self.open.load(Ordering::Acquire) => {
                vector.line.raise();
                true
            }
            _ => false,
        }
    }

    /// The vector, allocated on first use. Called with the lock of [`Msix`] held.
    fn allocated(&self, controller: &dyn MsiController) -> std::io::Result<&MsiVector> {
        match self.vector.get() {
            Some(vector) => Ok(vector),
            None => {
                let vector = controller.allocate()?;
                Ok(self.vector.get_or_init(|| vector))
            }
        }
    }
}

#[cfg(test)]
#[path = "msix_tests.rs"]
mod tests;
