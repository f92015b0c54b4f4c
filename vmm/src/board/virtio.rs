//! The virtio devices, each on the transport that the spec names.

use std::sync::{Arc, Mutex};

use arch::acpi::MmioDevice;
use arch::layout;
use devices::bus::Bus;
use devices::disk::engine::EngineKind;
use devices::irq::{Doorbells, MsiController};
use devices::pci::{Addresses, PciHost};
use devices::virtio::balloon::Balloon;
use devices::virtio::block::{Block, BlockOptions};
use devices::virtio::console::{Console, ConsoleInput, ConsoleSize};
use devices::virtio::device::{DeviceKind, VirtioDevice};
use devices::virtio::fs::{self, Fs};
use devices::virtio::net::Net;
use devices::virtio::rng::Rng;
use devices::virtio::transport::mmio::MMIO_LEN;
use devices::virtio::transport::pci::BAR;
use devices::virtio::transport::{TransportState, VirtioMmio, VirtioPci};
use devices::virtio::vsock::Vsock;

use super::disks::Disks;
use super::state::{BoardError, BoardState};
use super::{Parts, SharedTransport, queues};
use crate::console::Pace;
use crate::error::VmError;
use crate::host::{Host, HostError};
use crate::spec::{DiskIo, Stream, Transport};

/// What the rest of the board needs of them.
pub(super) struct Added {
    /// Where the virtio-mmio devices are.
    pub(super) mmio: Vec<MmioDevice>,
    /// The console's input.
    pub(super) console: ConsoleInput,
    /// The disks.
    pub(super) disks: Disks,
    /// All of them, to pause them.
    pub(super) transports: Vec<SharedTransport>,
}

/// Make all virtio devices and put them on the bus, as at power-on or as `state` says.
pub(super) fn add(
    parts: &Parts<'_>,
    bus: &Bus,
    pci: &PciHost,
    state: Option<&BoardState>,
) -> Result<Added, VmError> {
    let host = parts.host;
    let mut mmio = Vec::new();
    let mut disks = Disks::default();
    let mut transports = Vec::new();
    let saved = state.map(|state| state.virtio.as_slice());
    let mut place = |device: Box<dyn VirtioDevice>| -> Result<(), VmError> {
        let state = saved.map(|saved| find(saved, transports.len(), device.id())).transpose()?;
        transports.push(match host.spec.transport {
            Transport::Pci => add_pci(device, parts, pci, state)?,
            Transport::Mmio => add_mmio(device, parts, bus, &mut mmio, state)?,
        });
        Ok(())
    };
    add_disks(host, &mut disks, &mut place)?;
    for (index, network) in host.nets.iter().enumerate() {
        let id = format!("net{index}");
        let counters = host.counters.of(&id, DeviceKind::Net);
        let net = Net::new(id, Arc::clone(&network.backend), network.options, counters)
            .map_err(VmError::resources("make a network device"))?;
        place(Box::new(net.limited(network.limiters.clone())))?;
    }
    let output = host.console.output(&host.console_sink, Pace::Pieces)?;
    let counters = host.counters.of("console0", DeviceKind::Console);
    let (console, input) = Console::new("console0", Box::new(output), Some(ConsoleSize::default()), counters)
        .map_err(VmError::resources("make the console"))?;
    if host.spec.console == Stream::Stdio {
        host.console.connect(Some(Arc::new(input.clone())));
    }
    place(Box::new(console))?;
    place(Box::new(Rng::new("rng0", host.counters.of("rng0", DeviceKind::Rng))))?;
    add_optional(host, &mut place)?;
    if let Some(more) = saved.and_then(|saved| saved.get(transports.len())) {
        return Err(BoardError::NotInSpec(more.id.clone()).into());
    }
    Ok(Added { mmio, console: input, disks, transports })
}

/// Puts a device on the bus.
type Place<'a> = &'a mut dyn FnMut(Box<dyn VirtioDevice>) -> Result<(), VmError>;

fn add_disks(host: &Host, disks: &mut Disks, place: Place<'_>) -> Result<(), VmError> {
    for (index, (host_disk, spec)) in host.disks.iter().zip(&host.spec.disks).enumerate() {
        let id = format!("disk{index}");
        let options = BlockOptions {
            queues: queues(spec.queues, &host.spec),
            serial: spec.serial.as_deref().map(str::parse).transpose()?,
            engine: match spec.io {
                DiskIo::Auto => EngineKind::Auto,
                DiskIo::Uring => EngineKind::Uring,
                DiskIo::Plain => EngineKind::Plain,
            },
            limiter: host_disk.limiter.clone(),
            counters: host.counters.of(&id, DeviceKind::Block),
            ..BlockOptions::default()
        };
        let block = Block::new(id.clone(), Arc::clone(&host_disk.disk), options);
        disks.add(id, block.resizer());
        place(Box::new(block))?;
    }
    Ok(())
}

/// Those that not every VM has, beside disks and networks.
fn add_optional(host: &Host, place: Place<'_>) -> Result<(), VmError> {
    if let Some(control) = &host.balloon {
        let counters = host.counters.of("balloon0", DeviceKind::Balloon);
        // A huge page that goes back to the pool may be gone when the guest touches it again, which would end the VM.
        let reclaim = !host.spec.memory.hugepages;
        place(Box::new(Balloon::new("balloon0", control.clone(), counters, reclaim)))?;
    }
    if let Some((listener, spec)) = host.vsock.as_ref().zip(host.spec.vsock.as_ref()) {
        let counters = host.counters.of("vsock0", DeviceKind::Vsock);
        let device = Vsock::new("vsock0", spec.cid, Arc::clone(listener), counters);
        place(Box::new(device.map_err(VmError::resources("make the vsock"))?))?;
    }
    let most = fs::room(host.folders.len()).map_err(HostError::from)?;
    for ((at, folder), tag) in host.folders.iter().enumerate().zip(host.spec.tags()) {
        let id = format!("fs{at}");
        let counters = host.counters.of(&id, DeviceKind::Fs);
        place(Box::new(Fs::new(&id, &tag, Arc::clone(folder), most, counters)))?;
    }
    Ok(())
}

/// The state of the device called `id`. It is at the same place, for that is where the guest found it.
fn find<'a>(saved: &'a [TransportState], place: usize, id: &str) -> Result<&'a TransportState, BoardError> {
    match saved.get(place) {
        Some(state) if state.id == id => Ok(state),
        Some(other) if saved.iter().any(|state| state.id == id) => {
            Err(BoardError::NotInSpec(other.id.clone()))
        }
        _ => Err(BoardError::NotSaved(id.to_owned())),
    }
}

fn add_pci(
    device: Box<dyn VirtioDevice>,
    parts: &Parts<'_>,
    pci: &PciHost,
    state: Option<&TransportState>,
) -> Result<SharedTransport, VmError> {
    let msi: Arc<dyn MsiController> = Arc::<crate::interrupts::Interrupts>::clone(parts.interrupts);
    let doorbells: Arc<dyn Doorbells> = Arc::<crate::interrupts::Interrupts>::clone(parts.interrupts);
    let transport = VirtioPci::new(device, Arc::clone(parts.ram), msi, doorbells, state)?;
    let transport = Arc::new(Mutex::new(transport));
    pci.add(
        Arc::<Mutex<VirtioPci>>::clone(&transport),
        [(BAR, Arc::<Mutex<VirtioPci>>::clone(&transport) as _)],
        if state.is_some() { Addresses::Restored } else { Addresses::Fresh },
    )?;
    Ok(transport)
}

fn add_mmio(
    device: Box<dyn VirtioDevice>,
    parts: &Parts<'_>,
    bus: &Bus,
    placed: &mut Vec<MmioDevice>,
    state: Option<&TransportState>,
) -> Result<SharedTransport, VmError> {
    let full = || VmError::TooManyDevices(layout::gsi::MMIO.len());
    let (range, gsi) = layout::mmio_slot(placed.len()).ok_or_else(full)?;
    let line = parts.interrupts.line(gsi).map_err(VmError::resources("make an interrupt line"))?;
    let doorbells: Arc<dyn Doorbells> = Arc::<crate::interrupts::Interrupts>::clone(parts.interrupts);
    let transport = VirtioMmio::new(device, Arc::clone(parts.ram), range.start, line, doorbells, state)?;
    let transport = Arc::new(Mutex::new(transport));
    bus.insert(range.start, MMIO_LEN, Arc::<Mutex<VirtioMmio>>::clone(&transport))?;
    placed.push(MmioDevice { range, gsi });
    Ok(transport)
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::virtio::state::{DeviceState, RngState};
    use devices::virtio::transport::BusState;

    fn saved(id: &str) -> TransportState {
        TransportState {
            id: id.to_owned(),
            status: 0,
            active: false,
            features: 0,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
            queues: Vec::new(),
            isr: 0,
            generation: 0,
            bus: BusState::Mmio,
            device: DeviceState::Rng(RngState {}),
        }
    }

    #[test]
    fn a_device_is_found_where_its_guest_found_it_and_nowhere_else() {
        let all = [saved("disk0"), saved("net0"), saved("rng0")];
        let text = |place, id| match find(&all, place, id) {
            Ok(state) => state.id.clone(),
            Err(error) => error.to_string(),
        };
        assert_eq!(text(1, "net0"), "net0");
        assert!(text(1, "rng0").starts_with("the guest has net0, and the spec does not"));
        assert!(text(1, "disk1").starts_with("the spec has disk1, and the guest does not"));
        assert!(text(3, "vsock0").starts_with("the spec has vsock0, and the guest does not"));
    }
}
