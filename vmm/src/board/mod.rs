//! The board: the two buses, and every device that stands on them.
//!
//! vCPU threads reach devices through the buses; the `vmm` thread through the handles kept here. A board is
//! made for one boot of the guest and dropped with it, which stops its devices. What must outlive a reboot
//! (disks, consoles) belongs to [`Host`] and is lent to it.

mod disks;
mod generation;
mod input;
mod legacy;
mod state;
mod virtio;

use std::sync::{Arc, Mutex};

use arch::acpi::{self, AcpiSpec};
use arch::layout::{self, Range};
use arch::memory::{GuestRam, SharedRam};
use devices::bus::{Bus, SharedDevice};
use devices::pci::host::{CONFIG_PORTS, CONFIG_PORTS_LEN, ECAM_LEN};
use devices::pci::{ConfigPorts, Ecam, PciHost, Windows};
use devices::virtio::console::{ConsoleInput, ConsoleSize};
use devices::virtio::transport::{StillActive, Transport};

use crate::error::VmError;
use crate::host::Host;
use crate::interrupts::Interrupts;
use crate::spec::VmSpec;
use disks::Disks;
use legacy::{Legacy, lock};

pub(crate) use disks::ResizeError;
pub use state::BoardError;
pub(crate) use state::BoardState;

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
    pci_ports: Arc<Mutex<ConfigPorts>>,
    pci_window_64: Option<(u64, u64)>,
    legacy: Legacy,
    console: ConsoleInput,
    disks: Disks,
    transports: Vec<SharedTransport>,
}

impl Board {
    /// Every device that the spec asks for, on its bus: as at power-on, with the ACPI tables that announce them in guest memory, or
    /// as `state` says, where guest memory has the tables already. Then the devices are paused, and
    /// [`Board::resume_devices`] lets them go on once the interrupt controllers are what they were.
    ///
    /// # Errors
    /// If the host is out of something, there is no place for a device, or one cannot be what `state` says.
    pub(crate) fn build(parts: &Parts<'_>, state: Option<&BoardState>) -> Result<Self, VmError> {
        let (mmio, ports) = (Bus::new(), Bus::new());
        let window_64 = layout::pci_window_64(parts.host.spec.memory.size.0, parts.phys_bits);
        let pci_window_64 = window_64.map(|window| (window.start, window.len));
        if let Some(saved) = state.map(|state| state.pci_window_64).filter(|saved| *saved != pci_window_64) {
            return Err(BoardError::Window { saved, here: pci_window_64 }.into());
        }
        let (pci, pci_ports) = add_pci(&mmio, &ports, window_64, state)?;
        let legacy = Legacy::add(&ports, parts, state)?;
        let routes = parts.interrupts.hold_routes();
        let virtio = virtio::add(parts, &mmio, &pci, state)?;
        routes.install().map_err(VmError::resources("route the interrupts"))?;
        if state.is_none() {
            let tables = AcpiSpec {
                cpus: parts.host.spec.cpus.into(),
                mmio: virtio.mmio,
                pci: Some(acpi::PciHost { window_64 }),
                serial: true,
                pvpanic: true,
            };
            acpi::write(&tables, parts.ram).map_err(VmError::Acpi)?;
            generation::renew(parts.ram)?;
        }
        let virtio::Added { console, disks, transports, .. } = virtio;
        let board = Self { mmio, ports, pci, pci_ports, pci_window_64, legacy, console, disks, transports };
        board.settle_bars();
        Ok(board)
    }

    /// All that the guest sees of the devices, which are paused.
    ///
    /// # Errors
    /// If one is not.
    pub(crate) fn save(&self) -> Result<BoardState, StillActive> {
        Ok(BoardState {
            serial: lock(&self.legacy.serial).save(),
            rtc: lock(&self.legacy.rtc).save(),
            power: lock(&self.legacy.power).save(),
            pci_ports: lock(&self.pci_ports).save(),
            pci_bridge: self.pci.save(),
            pci_window_64: self.pci_window_64,
            virtio: self.transports.iter().map(|device| lock(device).save()).collect::<Result<_, _>>()?,
        })
    }

    /// Put every BAR where the guest's configuration says.
    pub(crate) fn settle_bars(&self) {
        self.pci.settle_bars(&self.mmio);
    }

    /// Stop every device where it is. Nobody drives them meanwhile.
    pub(crate) fn pause_devices(&self) {
        self.legacy.pause();
        for transport in &self.transports {
            lock(transport).pause();
        }
    }

    /// Let them go on. After a restore the first time is when the interrupt controllers are what they were: devices interrupt again
    /// for what may have been lost on the way to those that were saved.
    pub(crate) fn resume_devices(&self) {
        for transport in &self.transports {
            lock(transport).resume();
        }
        self.legacy.resume();
    }

    /// What is in `ram` begins another life: give it another VM generation ID, and tell the guest. It hears of it when the devices
    /// go on, if they are paused.
    ///
    /// # Errors
    /// If the host has no random numbers.
    pub(crate) fn new_generation(&self, ram: &GuestRam) -> Result<(), VmError> {
        generation::renew(ram)?;
        lock(&self.legacy.power).announce_generation();
        Ok(())
    }

    /// Press the ACPI power button.
    pub(crate) fn press_power_button(&self) {
        lock(&self.legacy.power).press_power_button();
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

fn add_pci(
    mmio: &Bus,
    ports: &Bus,
    window_64: Option<Range>,
    state: Option<&BoardState>,
) -> Result<(Arc<PciHost>, Arc<Mutex<ConfigPorts>>), VmError> {
    let mem32 = layout::PCI_WINDOW_32;
    let windows = Windows {
        mem32: mem32.start..mem32.end(),
        mem64: window_64.map_or(0..0, |window| window.start..window.end()),
    };
    let pci = Arc::new(PciHost::new(windows));
    let mut config = ConfigPorts::new(Arc::clone(&pci));
    if let Some(state) = state {
        pci.restore(&state.pci_bridge).map_err(BoardError::from)?;
        config.restore(&state.pci_ports).map_err(BoardError::from)?;
    }
    let config = Arc::new(Mutex::new(config));
    mmio.insert(layout::ECAM.start, ECAM_LEN, shared(Ecam::new(Arc::clone(&pci))))?;
    ports.insert(CONFIG_PORTS, CONFIG_PORTS_LEN, Arc::<Mutex<ConfigPorts>>::clone(&config))?;
    Ok((pci, config))
}

/// How many request queues a disk has if the user does not say.
fn queues(asked: Option<u16>, spec: &VmSpec) -> u16 {
    asked.unwrap_or_else(|| u16::from(spec.cpus.min(4))).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::layout::{event, port, power};
    use devices::legacy::i8042::I8042_PORTS;
    use devices::legacy::power::{self as answered, POWER_PORTS};
    use devices::legacy::pvpanic::PVPANIC_PORT;
    use devices::legacy::rtc::RTC_PORTS;
    use devices::legacy::serial::SERIAL_PORTS;
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
        assert_eq!(event::GENERATION, answered::EVENT_GENERATION);
        assert_eq!(layout::ECAM.len, ECAM_LEN);
        assert_eq!(layout::MMIO_SLOT_LEN, MMIO_LEN);
    }
}
