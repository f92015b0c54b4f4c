use super::*;
use crate::pci::BarKind;
use proptest::prelude::*;

const WINDOWS: Windows = Windows { mem32: 0xc000_0000..0xe000_0000, mem64: 0x40_0000_0000..0x80_0000_0000 };
const COMMAND: u64 = 4;
const BAR0: u64 = 0x10;

/// A function with one BAR of 16 KiB and memory behind it that says its name.
struct Card {
    config: ConfigSpace,
    name: u8,
    moves: Vec<BarMove>,
}

impl Card {
    fn new(name: u8, kind: BarKind) -> Arc<Mutex<Self>> {
        let mut config =
            ConfigSpace::new(&Identity { vendor: 0x1af4, device: 0x1040, ..Identity::default() });
        config.add_bar(0, kind, 0x4000).unwrap();
        Arc::new(Mutex::new(Self { config, name, moves: Vec::new() }))
    }
}

impl PciFunction for Card {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn bar_moved(&mut self, moved: &BarMove) {
        self.moves.push(moved.clone());
    }
}

impl BusDevice for Card {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(self.name);
    }
    fn write(&mut self, _: u64, _: &[u8]) -> Effect {
        Effect::None
    }
}

/// A bus with two cards: `cards[0]` in slot 1, 64-bit; `cards[1]` in slot 2, 32-bit.
struct Bench {
    host: Arc<PciHost>,
    mmio: Bus,
    cards: Vec<Arc<Mutex<Card>>>,
}

fn bench() -> Bench {
    let host = Arc::new(PciHost::new(WINDOWS));
    let cards = vec![Card::new(1, BarKind::Memory64), Card::new(2, BarKind::Memory32)];
    for (slot, card) in (1..).zip(&cards) {
        let memory: SharedDevice = card.clone();
        assert_eq!(host.add(card.clone(), [(0, memory)], Addresses::Fresh).unwrap(), slot);
    }
    Bench { host, mmio: Bus::new(), cards }
}

fn ecam(slot: u64, register: u64) -> u64 {
    slot << SLOT_SHIFT | register
}

impl Bench {
    /// Write configuration space, and do what the vmm does with the effect.
    fn write(&self, slot: u64, register: u64, data: &[u8]) {
        if self.host.config_write(ecam(slot, register), data) == Effect::MoveBars {
            self.host.settle_bars(&self.mmio);
        }
    }
    fn read32(&self, slot: u64, register: u64) -> u32 {
        let mut data = [0; 4];
        self.host.config_read(ecam(slot, register), &mut data);
        u32::from_le_bytes(data)
    }
    fn who_answers(&self, address: u64) -> Option<u8> {
        let mut data = [0; 1];
        self.mmio.read(address, &mut data).then_some(data[0])
    }
    fn moves(&self, card: usize) -> Vec<BarMove> {
        std::mem::take(&mut self.cards[card].lock().unwrap().moves)
    }
}

const AT_64: u64 = 0x40_0000_0000;
const AT_32: u64 = 0xc000_0000;

#[test]
fn a_scan_finds_the_bridge_and_the_cards_and_nothing_else() {
    let bench = bench();
    let found: Vec<_> = (0..32).filter(|slot| bench.read32(*slot, 0) != u32::MAX).collect();
    assert_eq!(found, [0, 1, 2]);
    assert_eq!((bench.read32(0, 0), bench.read32(0, 8) >> 8), (0x0d57_8086, 0x06_0000));
    for function in 1..8 {
        let mut data = [0; 4];
        bench.host.config_read(ecam(1, function << FUNCTION_SHIFT), &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}

#[test]
fn bars_have_addresses_from_the_start_and_answer_when_enabled() {
    let bench = bench();
    assert_eq!((bench.read32(1, BAR0), bench.read32(1, BAR0 + 4)), (0b100, 0x40));
    assert_eq!(bench.read32(2, BAR0), 0xc000_0000);
    assert_eq!((bench.who_answers(AT_64), bench.who_answers(AT_32)), (None, None));
    bench.write(1, COMMAND, &[2, 0]);
    bench.write(2, COMMAND, &[2, 0]);
    assert_eq!((bench.who_answers(AT_64 + 0x3fff), bench.who_answers(AT_32)), (Some(1), Some(2)));
    assert_eq!(bench.moves(0), [BarMove { bar: 0, from: None, to: Some(AT_64), len: 0x4000 }]);
    bench.write(1, COMMAND, &[0, 0]);
    assert_eq!(bench.who_answers(AT_64), None);
    assert_eq!(bench.moves(0), [BarMove { bar: 0, from: Some(AT_64), to: None, len: 0x4000 }]);
}

#[test]
fn sizing_an_enabled_bar_ends_where_it_began() {
    let bench = bench();
    bench.write(1, COMMAND, &[2, 0]);
    for (register, old) in [(BAR0, 0b100u32), (BAR0 + 4, 0x40)] {
        bench.write(1, register, &[0xff; 4]);
        assert_eq!(bench.who_answers(AT_64), None);
        bench.write(1, register, &old.to_le_bytes());
    }
    assert_eq!(bench.who_answers(AT_64), Some(1));
    assert_eq!(bench.moves(0).last().unwrap().to, Some(AT_64));
}

#[test]
fn a_bar_outside_the_windows_is_nowhere() {
    let bench = bench();
    bench.write(2, COMMAND, &[2, 0]);
    for address in [0u32, 0xbfff_c000, 0xe000_0000, 0xfee0_0000, 0xffff_c000] {
        bench.write(2, BAR0, &address.to_le_bytes());
        assert_eq!(bench.who_answers(address.into()), None, "{address:#x}");
    }
    bench.write(2, BAR0, &0xdfff_c000u32.to_le_bytes());
    assert_eq!(bench.who_answers(0xdfff_c000), Some(2));
}

#[test]
fn a_bar_on_top_of_another_waits_until_that_one_leaves() {
    let bench = bench();
    bench.write(1, COMMAND, &[2, 0]);
    bench.write(2, COMMAND, &[2, 0]);
    bench.write(1, BAR0 + 4, &[0; 4]);
    bench.write(1, BAR0, &0xc000_0000u32.to_le_bytes());
    assert_eq!(bench.who_answers(AT_32), Some(2));
    bench.write(2, BAR0, &0xc100_0000u32.to_le_bytes());
    assert_eq!((bench.who_answers(AT_32), bench.who_answers(0xc100_0000)), (Some(1), Some(2)));
}

#[test]
fn memory_that_is_not_a_bar_is_never_taken_away() {
    let bench = bench();
    let other = Card::new(9, BarKind::Memory32);
    bench.mmio.insert(0xc200_0000, 0x1000, other).unwrap();
    bench.write(2, COMMAND, &[2, 0]);
    bench.write(2, BAR0, &0xc200_0000u32.to_le_bytes());
    assert_eq!((bench.who_answers(0xc200_0000), bench.who_answers(0xc200_2000)), (Some(9), None));
    bench.write(2, BAR0, &AT_32.to_le_bytes()[..4]);
    assert_eq!((bench.who_answers(0xc200_0000), bench.who_answers(AT_32)), (Some(9), Some(2)));
}

#[test]
fn both_ways_reach_the_same_registers() {
    let bench = bench();
    let (mut ports, mut ecam_window) = (ConfigPorts::new(bench.host.clone()), Ecam::new(bench.host.clone()));
    assert_eq!(ports.write(0, &0x8000_0810u32.to_le_bytes()), Effect::None);
    assert_eq!(ports.write(4, &[0xff; 4]), Effect::None);
    let mut data = [0; 4];
    ecam_window.read(ecam(1, BAR0), &mut data);
    assert_eq!(u32::from_le_bytes(data), 0xffff_c004);
    assert_eq!(ecam_window.write(ecam(1, COMMAND), &[2]), Effect::MoveBars);
    let _ = ports.write(0, &0x8000_0804u32.to_le_bytes());
    ports.read(4, &mut data);
    assert_eq!(data[0], 2);
    ports.read(6, &mut data[..2]);
    assert_eq!(data[..2], [0, 0], "status, by word");
    ports.read(0, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x8000_0804);
}

#[test]
fn the_data_port_is_closed_without_an_address() {
    let bench = bench();
    let mut ports = ConfigPorts::new(bench.host.clone());
    let mut data = [0; 4];
    ports.read(4, &mut data);
    assert_eq!(data, [0xff; 4]);
    // Another bus, a slot with nothing, another function.
    for address in [0x8001_0000u32, 0x8000_f800, 0x8000_0100] {
        let _ = ports.write(0, &address.to_le_bytes());
        ports.read(4, &mut data);
        assert_eq!(data, [0xff; 4], "{address:#x}");
    }
}

#[test]
fn the_reset_control_register_is_a_byte_inside_the_address_port() {
    let mut ports = ConfigPorts::new(bench().host);
    assert_eq!(ports.write(0, &0x8000_0600u32.to_le_bytes()), Effect::None);
    assert_eq!(ports.write(1, &[0x02]), Effect::None);
    let mut data = [0; 1];
    ports.read(1, &mut data);
    assert_eq!(data, [0x02]);
    assert_eq!(ports.write(1, &[0x06]), Effect::Reset);
}

#[test]
fn the_bus_is_full_with_31_devices() {
    let host = PciHost::new(WINDOWS);
    for slot in 1..32 {
        let card = Card::new(slot, BarKind::Memory32);
        assert_eq!(host.add(card.clone(), [(0, card as SharedDevice)], Addresses::Fresh).unwrap(), slot);
    }
    assert!(matches!(host.add(Card::new(0, BarKind::Memory32), [], Addresses::Fresh), Err(PciError::NoSlot)));
}

#[test]
fn the_bridge_and_the_ports_read_on_another_machine_as_they_did() {
    let (old, new) = (bench(), bench());
    let mut ports = ConfigPorts::new(old.host.clone());
    let _ = ports.write(0, &0x8000_0804_u32.to_le_bytes());
    let _ = ports.write(1, &[0x0a]);
    old.write(0, 0x3c, &[7]);
    let file = serde_json::to_string(&(old.host.save(), ports.save())).unwrap();
    let (bridge, saved): (BridgeState, PortsState) = serde_json::from_str(&file).unwrap();
    new.host.restore(&bridge).unwrap();
    let mut moved = ConfigPorts::new(new.host.clone());
    moved.restore(&saved).unwrap();
    assert_eq!((new.host.save(), moved.save()), (bridge.clone(), saved.clone()));
    assert_eq!(new.read32(0, 0x3c), 7);
    // The register that was selected is.
    let _ = moved.write(4, &[2, 0]);
    assert_eq!(new.read32(1, COMMAND) & 2, 2);

    let mut other = bridge;
    other.config.0[2] ^= 1;
    assert!(new.host.restore(&other).unwrap_err().to_string().contains("bridge"));
    for wrong in [PortsState { address: 1, ..saved.clone() }, PortsState { reset: 4, ..saved }] {
        assert!(moved.restore(&wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn cards_that_were_saved_on_one_place_are_not_both_there() {
    let host = PciHost::new(WINDOWS);
    let mmio = Bus::new();
    let cards = [Card::new(1, BarKind::Memory64), Card::new(2, BarKind::Memory64)];
    for card in &cards {
        let config = &mut card.lock().unwrap().config;
        config.set_bar_address(0, AT_64).unwrap();
        let _ = config.write(COMMAND as usize, &[2, 0]);
    }
    for card in &cards {
        host.add(card.clone(), [(0, card.clone() as SharedDevice)], Addresses::Restored).unwrap();
    }
    host.settle_bars(&mmio);
    let moves = cards.each_ref().map(|card| card.lock().unwrap().moves.len());
    assert_eq!(moves, [1, 0]);
}

proptest! {
    /// Whatever the guest writes: each card answers where its configuration space says, or nowhere, and a
    /// guest that puts things in order again finds them there.
    #[test]
    fn any_sequence_of_accesses_ends_in_order(
        accesses in prop::collection::vec(
            (any::<bool>(), 0u64..3, prop_oneof![0u64..0x30, any::<u64>()],
             prop::collection::vec(any::<u8>(), 0..9)), 0..100),
    ) {
        let bench = bench();
        let mut ports = ConfigPorts::new(bench.host.clone());
        for (by_port, slot, register, mut data) in accesses {
            let effect = if by_port {
                let effect = ports.write(register & 7, &data);
                ports.read(register & 7, &mut data);
                effect
            } else {
                let address = if register < 0x30 { ecam(slot, register) } else { register };
                let effect = bench.host.config_write(address, &data);
                bench.host.config_read(address, &mut data);
                effect
            };
            if effect == Effect::MoveBars {
                bench.host.settle_bars(&bench.mmio);
            }
            for (card, name) in bench.cards.iter().zip(1..) {
                let wanted = card.lock().unwrap().config.bar_address(0);
                let last = card.lock().unwrap().moves.last().and_then(|moved| moved.to);
                prop_assert!(last.is_none() || last == wanted);
                if let Some(at) = last {
                    prop_assert_eq!(bench.who_answers(at), Some(name));
                }
            }
        }
        bench.write(1, BAR0, &AT_64.to_le_bytes());
        bench.write(2, BAR0, &AT_32.to_le_bytes()[..4]);
        bench.write(1, COMMAND, &[2, 0]);
        bench.write(2, COMMAND, &[2, 0]);
        prop_assert_eq!((bench.who_answers(AT_64), bench.who_answers(AT_32)), (Some(1), Some(2)));
    }
}
