//! The virtio devices, each on the transport that the spec names.

use std::sync::{Arc, Mutex};

use arch::acpi::MmioDevice;
use arch::layout;
use devices::bus::Bus;
use devices::disk::engine::EngineKind;
use devices::irq::{Doorbells, MsiController};
use devices::pci::PciHost;
use devices::virtio::block::{Block, BlockOptions};
use devices::virtio::console::{Console, ConsoleInput, ConsoleSize};
use devices::virtio::device::{DeviceKind, VirtioDevice};
use devices::virtio::net::Net;
use devices::virtio::rng::Rng;
use devices::virtio::transport::mmio::MMIO_LEN;
use devices::virtio::transport::pci::BAR;
use devices::virtio::transport::{VirtioMmio, VirtioPci};

use super::{Parts, queues};
use crate::console::Pace;
use crate::error::VmError;
use crate::spec::{DiskIo, Stream, Transport};

/// What the rest of the board needs of them.
pub(super) struct Added {
    /// Where the virtio-mmio devices are.
    pub(super) mmio: Vec<MmioDevice>,
    /// The console's input.
    pub(super) console: ConsoleInput,
}

/// Make all virtio devices and put them on the bus.
pub(super) fn add(parts: &Parts<'_>, bus: &Bus, pci: &PciHost) -> Result<Added, VmError> {
    let host = parts.host;
    let mut mmio = Vec::new();
    let mut place = |device: Box<dyn VirtioDevice>| match host.spec.transport {
        Transport::Pci => add_pci(device, parts, pci),
        Transport::Mmio => add_mmio(device, parts, bus, &mut mmio),
    };
    for (index, (disk, spec)) in host.disks.iter().zip(&host.spec.disks).enumerate() {
        let options = BlockOptions {
            queues: queues(spec.queues, &host.spec),
            serial: spec.serial.as_deref().map(str::parse).transpose()?,
            engine: match spec.io {
                DiskIo::Auto => EngineKind::Auto,
                DiskIo::Uring => EngineKind::Uring,
                DiskIo::Plain => EngineKind::Plain,
            },
            ..BlockOptions::default()
        };
        place(Box::new(Block::new(format!("disk{index}"), Arc::clone(disk), options)))?;
    }
    for (index, network) in host.nets.iter().enumerate() {
        let id = format!("net{index}");
        let counters = host.counters.of(&id, DeviceKind::Net);
        let net = Net::new(id, Arc::clone(&network.backend), network.options, counters);
        place(Box::new(net.map_err(VmError::resources("make a network device"))?))?;
    }
    let output = host.console.output(&host.console_sink, Pace::Pieces)?;
    let (console, input) = Console::new("console0", Box::new(output), Some(ConsoleSize::default()))
        .map_err(VmError::resources("make the console"))?;
    if host.spec.console == Stream::Stdio {
        host.console.connect(Some(Arc::new(input.clone())));
    }
    place(Box::new(console))?;
    place(Box::new(Rng::new("rng0")))?;
    Ok(Added { mmio, console: input })
}

fn add_pci(device: Box<dyn VirtioDevice>, parts: &Parts<'_>, pci: &PciHost) -> Result<(), VmError> {
    let msi: Arc<dyn MsiController> = Arc::<crate::interrupts::Interrupts>::clone(parts.interrupts);
    let doorbells: Arc<dyn Doorbells> = Arc::<crate::interrupts::Interrupts>::clone(parts.interrupts);
    let transport = VirtioPci::new(device, Arc::clone(parts.ram), msi, doorbells)?;
    let transport = Arc::new(Mutex::new(transport));
    pci.add(Arc::<Mutex<VirtioPci>>::clone(&transport), [(BAR, transport as _)])?;
    Ok(())
}

fn add_mmio(
    device: Box<dyn VirtioDevice>,
    parts: &Parts<'_>,
    bus: &Bus,
    placed: &mut Vec<MmioDevice>,
) -> Result<(), VmError> {
    let full = || VmError::TooManyDevices(layout::gsi::MMIO.len());
    let (range, gsi) = layout::mmio_slot(placed.len()).ok_or_else(full)?;
    let line = parts.interrupts.line(gsi).map_err(VmError::resources("make an interrupt line"))?;
    let doorbells: Arc<dyn Doorbells> = Arc::<crate::interrupts::Interrupts>::clone(parts.interrupts);
    let transport = VirtioMmio::new(device, Arc::clone(parts.ram), range.start, line, doorbells)?;
    bus.insert(range.start, MMIO_LEN, Arc::new(Mutex::new(transport)))?;
    placed.push(MmioDevice { range, gsi });
    Ok(())
}
