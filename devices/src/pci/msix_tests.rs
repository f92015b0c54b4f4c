use super::*;
use crate::irq::IrqLine;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io;
use std::sync::Barrier;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const ENABLED: u16 = CONTROL_ENABLED;
const ALL_MASKED: u16 = CONTROL_ENABLED | CONTROL_MASKED;

/// An interrupt controller that remembers.
#[derive(Default)]
struct Controller {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    vectors: BTreeMap<u32, MsiVector>,
    routes: BTreeMap<u32, MsiMessage>,
    calls: usize,
    refuse: bool,
}

impl MsiController for Controller {
    fn allocate(&self) -> io::Result<MsiVector> {
        let mut state = self.state.lock().unwrap();
        let id = 24 + state.vectors.len() as u32;
        let vector = MsiVector { id, line: IrqLine::new(EventFd::new(EFD_NONBLOCK)?) };
        state.vectors.insert(id, vector.clone());
        Ok(vector)
    }

    fn route(&self, vector: &MsiVector, message: Option<MsiMessage>) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.calls += 1;
        if state.refuse {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match message {
            Some(message) => state.routes.insert(vector.id, message),
            None => state.routes.remove(&vector.id),
        };
        Ok(())
    }

    fn free(&self, vector: MsiVector) {
        assert!(self.state.lock().unwrap().vectors.remove(&vector.id).is_some());
    }
}

impl Controller {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How often a vector was routed.
    fn calls(&self) -> usize {
        self.state().calls
    }

    /// How often a vector was raised since the last look.
    fn raised(&self, id: u32) -> u64 {
        self.state().vectors[&id].line.event().read().unwrap_or(0)
    }
}

fn bench(vectors: u16) -> (Arc<Controller>, Msix) {
    let controller = Arc::new(Controller::default());
    let msix = Msix::new(vectors, controller.clone());
    (controller, msix)
}

fn write32(msix: &Msix, offset: u64, value: u32) {
    msix.write_table(offset, &value.to_le_bytes());
}

/// What Linux does when a driver requests an interrupt.
fn set_up(msix: &Msix, vector: u64, data: u32) {
    write32(msix, vector * 16, 0xfee0_1000);
    write32(msix, vector * 16 + 4, 0);
    write32(msix, vector * 16 + 8, data);
    write32(msix, vector * 16 + 12, 0);
}

#[test]
fn a_vector_is_allocated_and_routed_when_it_is_first_unmasked() {
    let (controller, msix) = bench(4);
    msix.set_control(ALL_MASKED);
    set_up(&msix, 1, 0x41);
    assert!(controller.state().vectors.is_empty());
    assert_eq!(controller.calls(), 0);
    msix.set_control(ENABLED);
    assert_eq!(controller.state().vectors.len(), 1);
    assert_eq!(controller.state().routes[&24], MsiMessage { address: 0xfee0_1000, data: 0x41 });
    msix.trigger(1);
    assert_eq!(controller.raised(24), 1);
    drop(msix);
    assert!(controller.state().vectors.is_empty());
}

#[test]
fn nothing_is_heard_without_msix_or_of_vectors_that_do_not_exist() {
    let (controller, msix) = bench(2);
    set_up(&msix, 0, 0x41);
    msix.trigger(0);
    msix.trigger(2);
    msix.trigger(0xffff);
    assert!(!msix.enabled());
    msix.set_control(ENABLED);
    assert!(msix.enabled());
    assert_eq!(controller.raised(24), 0);
}

#[test]
fn what_a_masked_vector_wants_is_pending_and_comes_when_it_is_unmasked() {
    let (controller, msix) = bench(2);
    msix.set_control(ENABLED);
    set_up(&msix, 0, 0x41);
    write32(&msix, 12, 1);
    msix.trigger(0);
    msix.trigger(0);
    msix.trigger(1);
    let mut pending = [0; 8];
    msix.read_pending(0, &mut pending);
    assert_eq!(pending, [0b11, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(controller.raised(24), 0);
    write32(&msix, 12, 0);
    assert_eq!(controller.raised(24), 1);
    msix.read_pending(0, &mut pending);
    assert_eq!(pending[0], 0b10);
    write32(&msix, 12, 1);
    write32(&msix, 12, 0);
    assert_eq!(controller.raised(24), 0, "once only");
}

#[test]
fn the_function_mask_holds_all_vectors() {
    let (controller, msix) = bench(2);
    msix.set_control(ENABLED);
    set_up(&msix, 0, 0x41);
    set_up(&msix, 1, 0x42);
    msix.set_control(ALL_MASKED);
    msix.trigger(0);
    msix.trigger(1);
    assert_eq!((controller.raised(24), controller.raised(25)), (0, 0));
    msix.set_control(ENABLED);
    assert_eq!((controller.raised(24), controller.raised(25)), (1, 1));
}

#[test]
fn disabling_msix_forgets_what_is_pending() {
    let (controller, msix) = bench(1);
    msix.set_control(ENABLED);
    set_up(&msix, 0, 0x41);
    msix.set_control(ALL_MASKED);
    msix.trigger(0);
    msix.set_control(0);
    msix.set_control(ENABLED);
    assert_eq!(controller.raised(24), 0);
}

#[test]
fn masking_and_unmasking_does_not_route_anew_but_a_new_message_does() {
    let (controller, msix) = bench(1);
    msix.set_control(ENABLED);
    set_up(&msix, 0, 0x41);
    for mask in [1, 0, 1, 0] {
        write32(&msix, 12, mask);
    }
    assert_eq!(controller.calls(), 1);
    write32(&msix, 12, 1);
    write32(&msix, 8, 0x55);
    assert_eq!(controller.calls(), 1, "still masked");
    write32(&msix, 12, 0);
    assert_eq!(controller.calls(), 2);
    assert_eq!(controller.state().routes[&24].data, 0x55);
}

#[test]
fn a_refused_route_keeps_the_interrupt_pending_until_one_is_taken() {
    let (controller, msix) = bench(1);
    controller.state().refuse = true;
    msix.set_control(ENABLED);
    set_up(&msix, 0, 0x41);
    msix.trigger(0);
    controller.state().refuse = false;
    write32(&msix, 12, 0);
    assert_eq!(controller.raised(24), 1);
}

#[test]
fn the_table_takes_aligned_dwords_and_qwords() {
    let mut table = MsixTable::new(2);
    assert_eq!(table.write(16, &0x1122_3344_fee0_0000u64.to_le_bytes()), Some(1));
    assert_eq!(table.write(24, &0xffff_fffe_0000_0041u64.to_le_bytes()), Some(1));
    let mut data = [0; 8];
    table.read(16, &mut data);
    assert_eq!(u64::from_le_bytes(data), 0x1122_3344_fee0_0000);
    table.read(24, &mut data);
    assert_eq!(u64::from_le_bytes(data), 0x41, "reserved bits of vector control stay zero");
    table.read(28, &mut data);
    assert_eq!(data, [0; 8], "past the end");
    let fresh = table.clone();
    for (offset, len) in [(16, 1), (16, 2), (18, 4), (20, 8), (32, 4), (u64::MAX - 3, 4), (16, 0)] {
        assert_eq!(table.write(offset, &[0xff; 8][..len]), None, "{len} bytes at {offset:#x}");
    }
    assert_eq!(table, fresh);
}

#[test]
fn lengths_in_the_bar() {
    assert_eq!((table_len(3), pba_len(3)), (48, 8));
    assert_eq!((table_len(2048), pba_len(65)), (32_768, 16));
}

/// An interrupt that is triggered while another thread masks and unmasks is seen once it is unmasked.
#[test]
fn no_interrupt_is_lost_between_threads() {
    let (controller, msix) = bench(1);
    msix.set_control(ENABLED);
    set_up(&msix, 0, 0x41);
    let (start, end) = (Barrier::new(2), Barrier::new(2));
    let mut lost = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2000 {
                start.wait();
                msix.trigger(0);
                end.wait();
            }
        });
        for _ in 0..2000 {
            start.wait();
            for mask in [1, 0, 1, 0] {
                write32(&msix, 12, mask);
            }
            end.wait();
            lost += u32::from(controller.raised(24) == 0);
        }
    });
    assert_eq!(lost, 0);
}

proptest! {
    #[test]
    fn any_sequence_of_accesses_is_survived(
        accesses in prop::collection::vec(
            (0u8..5, prop_oneof![0u64..100, any::<u64>()], prop::collection::vec(any::<u8>(), 0..9)), 0..100),
    ) {
        let (controller, msix) = bench(5);
        for (kind, offset, mut data) in accesses {
            match kind {
                0 => msix.read_table(offset, &mut data),
                1 => msix.write_table(offset, &data),
                2 => msix.read_pending(offset, &mut data),
                3 => msix.set_control(offset as u16 | CONTROL_ENABLED),
                _ => msix.trigger(offset as u16),
            }
        }
        prop_assert!(controller.state().vectors.len() <= 5);
        drop(msix);
        prop_assert!(controller.state().vectors.is_empty());
    }
}
