//! Saved state that somebody wrote: each field set to what it cannot be. There is an error that names it, or a device that behaves.

use devices::virtio::testing::{HOLE, Kind};
use devices::virtio::transport::{BusState, PciState, TransportState};
use serde_json::Value;

use super::{Bench, EVERYTHING, everywhere};

/// A field, and what makes it impossible.
type Spoiler = (&'static str, fn(&mut TransportState));

const SPOILERS: [Spoiler; 17] = [
    ("id", |state| state.id.push('0')),
    ("status", |state| state.status |= 0x10),
    ("status", |state| state.status &= !2),
    ("status", |state| state.status &= !4),
    ("features", |state| state.features |= 1 << 63),
    ("features", |state| state.features &= !(1 << 32)),
    ("queues", |state| state.queues.truncate(state.queues.len() - 1)),
    ("queues", |state| state.queues.push(state.queues[0].clone())),
    ("queues[0].max", |state| state.queues[0].max *= 2),
    ("queues[0]", |state| state.queues[0].size = 3),
    ("queues[0]", |state| state.queues[0].size = 0x8000),
    ("queues[0]", |state| state.queues[0].desc = HOLE),
    ("queues[0]", |state| state.queues[0].avail += 1),
    ("queues[0]", |state| state.queues[0].used = u64::MAX - 3),
    ("isr", |state| state.isr = 4),
    ("device", |state| state.device = another(&state.device)),
    ("bus", |state| {
        state.bus = match state.bus {
            BusState::Mmio => BusState::Pci(PciState {
                config: Vec::new().into(),
                msix: devices::pci::MsixState { table: Vec::new().into(), pending: Vec::new().into() },
                config_vector: 0,
                queue_vectors: Vec::new(),
            }),
            BusState::Pci(_) => BusState::Mmio,
        };
    }),
];

/// The state of a device of another type.
fn another(state: &devices::virtio::state::DeviceState) -> devices::virtio::state::DeviceState {
    use devices::virtio::state::{DeviceState, RngState, VsockState};
    match state {
        DeviceState::Rng(_) => DeviceState::Vsock(VsockState {}),
        _ => DeviceState::Rng(RngState {}),
    }
}

/// As [`Spoiler`], for the PCI function.
type PciSpoiler = (&'static str, fn(&mut PciState));

const PCI_SPOILERS: [PciSpoiler; 8] = [
    ("config", |pci| pci.config.0.truncate(255)),
    ("config", |pci| pci.config.0[0] ^= 1),
    ("config", |pci| pci.config.0[0x34] ^= 4),
    ("msix.table", |pci| pci.msix.table.0.truncate(16)),
    ("msix.pending", |pci| pci.msix.pending.0.push(0)),
    ("msix.pending", |pci| pci.msix.pending.0.fill(0xff)),
    ("queue-vectors", |pci| pci.queue_vectors[0] = 0xff),
    ("queue-vectors", |pci| pci.queue_vectors.push(0)),
];

fn refused(bench: &mut Bench, field: &str, state: &TransportState, id: &str) {
    let error = bench.restore(state).expect_err(field).to_string();
    assert!(error.contains(id) && error.contains(&format!(": {field}")), "{field}: {error}");
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    everywhere(|bench| {
        drop(bench.guest.start(EVERYTHING));
        let good = bench.guest.save();
        let id = good.id.clone();
        for (field, spoil) in SPOILERS {
            let mut state = good.clone();
            spoil(&mut state);
            refused(bench, field, &state, &id);
        }
        if bench.kind == Kind::Pci {
            for (field, spoil) in PCI_SPOILERS {
                let mut state = good.clone();
                let BusState::Pci(pci) = &mut state.bus else { panic!("a PCI function") };
                spoil(pci);
                refused(bench, field, &state, &id);
            }
        }
        bench.restore(&good).unwrap();
        bench.guest.transport().resume();
        bench.works();
    });
}

/// Every value of a document, by its path.
fn paths(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| paths(value, &format!("{at}/{key}"), all))
        }
        Value::Array(values) => {
            values.iter().enumerate().for_each(|(index, value)| paths(value, &format!("{at}/{index}"), all));
        }
        _ => {}
    }
}

/// What to put in place of a value.
fn others(value: &Value) -> Vec<Value> {
    let numbers = [0, 1, 3, 0xff, 0xffff, 0xffff_ffff, 0x1000, u64::MAX];
    match value {
        Value::Number(number) => {
            let near = number.as_u64().map(|number| [number ^ 1, number ^ 0x40, number.wrapping_add(0x1000)]);
            let near = near.into_iter().flatten().map(Value::from);
            numbers.into_iter().map(Value::from).chain(near).chain([Value::from(-1), Value::Null]).collect()
        }
        Value::Bool(is) => vec![(!is).into()],
        Value::String(text) => {
            let flip = |from: &str, to: &str| Value::from(text.replace(from, to));
            let half: String = text.chars().take(text.len() / 4 * 2).collect();
            vec![
                "".into(),
                "zz".into(),
                "00".into(),
                half.into(),
                flip("0", "f"),
                flip("0", "1"),
                flip("8", "0"),
            ]
        }
        Value::Array(values) => {
            let twice: Vec<Value> = values.iter().chain(values).cloned().collect();
            let fewer = values.iter().skip(1).cloned().collect();
            vec![Value::Array(Vec::new()), Value::Array(twice), Value::Array(fewer)]
        }
        Value::Object(_) | Value::Null => vec![Value::Null, 1.into(), "x".into()],
    }
}

#[test]
fn any_field_may_be_anything() {
    everywhere(|bench| {
        drop(bench.guest.start(EVERYTHING));
        let good = serde_json::to_value(bench.guest.save()).unwrap();
        let mut all = Vec::new();
        paths(&good, "", &mut all);
        let mut restored = 0;
        for path in &all {
            for other in others(good.pointer(path).unwrap()) {
                let mut bad = good.clone();
                *bad.pointer_mut(path).unwrap() = other;
                let Ok(state) = serde_json::from_value::<TransportState>(bad) else { continue };
                if bench.restore(&state).is_err() {
                    continue;
                }
                restored += 1;
                bench.guest.transport().resume();
                for queue in 0..bench.factory.queues {
                    bench.guest.registers.notify_slowly(queue);
                }
                (bench.poke)();
                bench.guest.transport().pause();
                assert!(bench.guest.transport().save().is_ok());
                bench.guest.registers.write_status(0);
            }
        }
        bench.restore(&serde_json::from_value(good).unwrap()).unwrap();
        bench.guest.transport().resume();
        bench.works();
        // Among them what a guest can write at any time, such as what it has selected.
        assert!(restored > 20, "{restored} of {} fields", all.len());
    });
}
