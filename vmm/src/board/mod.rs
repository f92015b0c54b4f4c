//! The board: the two buses, and every device that stands on them.
//!
//! vCPU threads reach devices through the buses; the `vmm` thread through the handles kept here. A board is
//! made for one boot of the guest and dropped with it, which stops its devices. What must outlive a reboot
//! (disks, consoles) belongs to [`Host`] and is lent to it.

mod disks;
mod input;
mod virtio;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arch::acpi::{self, AcpiSpec};
use arch::layout::{self, Range};
use arch::memory::SharedRam;
use devices::bus::{Bus, SharedDevice};
use devices::legacy::i8042::{I8042, I8042_PORTS, I8042_PORTS_LEN};
use devices::legacy::power::{POWER_PORTS, POWER_PORTS_LEN, Power};
use devices::legacy::pvpanic::{PVPANIC_PORT, PVPANIC_PORT_LEN, Pvpanic};
use devices::legacy::rtc::{RTC_PORTS, RTC_PORTS_LEN, Rtc};
use devices::legacy::serial::{SERIAL_PORTS, SERIAL_PORTS_LEN, SerialPort};
use devices::pci::host::{CONFIG_PORTS, CONFIG_PORTS_LEN, ECAM_LEN};
use devices::pci::{ConfigPorts, Ecam, PciHost, Windows};
use devices::virtio::console::{ConsoleInput, ConsoleSize};
use devices::virtio::transport::Transport;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::console::Pace;
use crate::error::VmError;
use crate::host::Host;
use crate::interrupts::Interrupts;
use crate::spec::{Stream, VmSpec};
use disks::Disks;

pub(crate) use disks::ResizeError;

/// What the board is made with.
pub(crate) struct Parts<'a> {
    pub(crate) host: &'a Host,
    pub(crate) ram: &'a SharedRam,
    pub(crate) interrupts: &'a Arc<Interrupts>,
    /// How many bits of physical address the guest's processors have.
    pub(crate) phys_bits: u8,
}

/// A virtio transport as the `vmm` thread holds it.
type SharedTransport = Arc<Mutex<dyn Transport>>;

/// The devices of one boot.
pub(crate) struct Board {
    pub(crate) mmio: Bus,
    pub(crate) ports: Bus,
    pci: Arc<PciHost>,
    power: Arc<Mutex<Power>>,
    console: ConsoleInput,
    disks: Disks,
    transports: Vec<SharedTransport>,
}

impl Board {
    /// Every device that the spec asks for, on its bus, and the ACPI tables that announce them in guest memory.
    ///
    /// # Errors
    /// If the host is out of something or there is no place for a device.
    pub(crate) fn build(parts: &Parts<'_>) -> Result<Self, VmError> {
        let (mmio, ports) = (Bus::new(), Bus::new());
        let window_64 = layout::pci_window_64(parts.host.spec.memory.size.0, parts.phys_bits);
        let pci = add_pci(&mmio, &ports, window_64)?;
        let power = add_legacy(&ports, parts)?;
        let virtio = virtio::add(parts, &mmio, &pci)?;
        let tables = AcpiSpec {
            cpus: parts.host.spec.cpus.into(),
            mmio: virtio.mmio,
            pci: Some(acpi::PciHost { window_64 }),
            serial: true,
            pvpanic: true,
        };
        acpi::write(&tables, parts.ram).map_err(VmError::Acpi)?;
        let virtio::Added { console, disks, transports, .. } = virtio;
        Ok(Self { mmio, ports, pci, power, console, disks, transports })
    }

    /// Put every BAR where the guest's configuration says.
    pub(crate) fn settle_bars(&self) {
        self.pci.settle_bars(&self.mmio);
    }

    /// Stop every virtio device where it is. Nobody drives them meanwhile.
    pub(crate) fn pause_devices(&self) {
        for transport in &self.transports {
            transport.lock().unwrap_or_else(PoisonError::into_inner).pause();
        }
    }

    /// Let them go on.
    pub(crate) fn resume_devices(&self) {
        for transport in &self.transports {
            transport.lock().unwrap_or_else(PoisonError::into_inner).resume();
        }
    }

    /// Press the ACPI power button.
    pub(crate) fn press_power_button(&self) {
        self.power.lock().unwrap_or_else(PoisonError::into_inner).press_power_button();
    }

    /// Tell the guest how large its virtio console is.
    pub(crate) fn resize_console(&self, size: ConsoleSize) {
        self.console.resize(size);
    }

    /// Make the disk called `id` (such as `disk0`) `size` bytes large, and tell the guest.
    ///
    /// # Errors
    /// If there is none, or it cannot be made so.
    pub(crate) fn resize_disk(&self, id: &str, size: u64) -> Result<(), ResizeError> {
        self.disks.resize(id, size)
    }
}

fn shared<T: devices::bus::BusDevice + 'static>(device: T) -> SharedDevice {
    Arc::new(Mutex::new(device))
}

fn add_pci(mmio: &Bus, ports: &Bus, window_64: Option<Range>) -> Result<Arc<PciHost>, VmError> {
    let mem32 = layout::PCI_WINDOW_32;
    let windows = Windows {
        mem32: mem32.start..mem32.end(),
        mem64: window_64.map_or(0..0, |window| window.start..window.end()),
    };
    let pci = Arc::new(PciHost::new(windows));
    mmio.insert(layout::ECAM.start, ECAM_LEN, shared(Ecam::new(Arc::clone(&pci))))?;
    ports.insert(CONFIG_PORTS, CONFIG_PORTS_LEN, shared(ConfigPorts::new(Arc::clone(&pci))))?;
    Ok(pci)
}

/// The devices at fixed ports. Returns the one that the `vmm` thread acts on.
fn add_legacy(ports: &Bus, parts: &Parts<'_>) -> Result<Arc<Mutex<Power>>, VmError> {
    let line = |gsi| parts.interrupts.line(gsi).map_err(VmError::resources("make an interrupt line"));
    let room = EventFd::new(EFD_NONBLOCK).map_err(VmError::resources("make an eventfd"))?;
    let told = room.try_clone().map_err(VmError::resources("make an eventfd"))?;
    let host = parts.host;
    let output = host.console.output(&host.serial, Pace::Bytes)?;
    let serial = SerialPort::new(line(layout::gsi::SERIAL)?, Box::new(output), told);
    let serial = Arc::new(Mutex::new(serial));
    if host.spec.serial == Stream::Stdio {
        host.console.connect(Some(Arc::new(input::Serial::new(&serial, room))));
    }
    let power = Arc::new(Mutex::new(Power::new(line(layout::gsi::EVENT)?)));
    ports.insert(SERIAL_PORTS, SERIAL_PORTS_LEN, serial)?;
    ports.insert(I8042_PORTS, I8042_PORTS_LEN, shared(I8042))?;
    ports.insert(RTC_PORTS, RTC_PORTS_LEN, shared(Rtc::new(Box::new(SystemTime::now))))?;
    ports.insert(PVPANIC_PORT, PVPANIC_PORT_LEN, shared(Pvpanic))?;
    ports.insert(POWER_PORTS, POWER_PORTS_LEN, Arc::<Mutex<Power>>::clone(&power))?;
    Ok(power)
}

/// How many request queues a disk has if the user does not say.
fn queues(asked: Option<u16>, spec: &VmSpec) -> u16 {
    asked.unwrap_or_else(|| u16::from(spec.cpus.min(4))).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::layout::{event, port, power};
    use devices::legacy::power as answered;
    use devices::virtio::transport::mmio::MMIO_LEN;

    /// `arch` writes the tables and knows no device; `devices` answers and knows no table.
    #[test]
    fn what_acpi_announces_is_what_answers() {
        let ports = [
            (port::SERIAL, SERIAL_PORTS),
            (port::I8042_DATA, I8042_PORTS),
            (port::I8042_COMMAND, I8042_PORTS + 4),
            (port::RTC, RTC_PORTS),
            (port::PCI_CONFIG, CONFIG_PORTS),
            (port::PVPANIC, PVPANIC_PORT),
            (port::SLEEP_CONTROL, POWER_PORTS + answered::SLEEP_CONTROL),
            (port::SLEEP_STATUS, POWER_PORTS + answered::SLEEP_STATUS),
            (port::RESET, POWER_PORTS + answered::RESET),
            (port::EVENT_STATUS, POWER_PORTS + answered::EVENTS),
        ];
        for (announced, answers) in ports {
            assert_eq!(u64::from(announced), answers);
        }
        assert_eq!(power::SLEEP_TYPE_S5, answered::SLEEP_TYPE_S5);
        assert_eq!(power::RESET, answered::RESET_VALUE);
        assert_eq!(event::POWER_BUTTON, answered::EVENT_POWER_BUTTON);
        assert_eq!(layout::ECAM.len, ECAM_LEN);
        assert_eq!(layout::MMIO_SLOT_LEN, MMIO_LEN);
    }
}
