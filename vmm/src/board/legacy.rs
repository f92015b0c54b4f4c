//! The devices at fixed ports, and the vmm's handles of those that it acts on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use arch::layout;
use devices::bus::Bus;
use devices::legacy::i8042::{I8042, I8042_PORTS, I8042_PORTS_LEN};
use devices::legacy::power::{POWER_PORTS, POWER_PORTS_LEN, Power};
use devices::legacy::pvpanic::{PVPANIC_PORT, PVPANIC_PORT_LEN, Pvpanic};
use devices::legacy::rtc::{RTC_PORTS, RTC_PORTS_LEN, Rtc};
use devices::legacy::serial::{SERIAL_PORTS, SERIAL_PORTS_LEN, SerialPort};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::state::{BoardError, BoardState};
use super::{Parts, input, shared};
use crate::console::Pace;
use crate::error::VmError;
use crate::spec::Stream;

/// Those that have state.
pub(super) struct Legacy {
    pub(super) serial: Arc<Mutex<SerialPort>>,
    pub(super) rtc: Arc<Mutex<Rtc>>,
    pub(super) power: Arc<Mutex<Power>>,
}

impl Legacy {
    /// All of them on their ports, as at power-on or as `state` says.
    pub(super) fn add(ports: &Bus, parts: &Parts<'_>, state: Option<&BoardState>) -> Result<Self, VmError> {
        let line = |gsi| parts.interrupts.line(gsi).map_err(VmError::resources("make an interrupt line"));
        let serial = serial(parts, line(layout::gsi::SERIAL)?, state)?;
        let mut power = Power::new(line(layout::gsi::EVENT)?);
        let mut rtc = Rtc::new(Box::new(SystemTime::now));
        if let Some(state) = state {
            power.restore(&state.power).map_err(BoardError::from)?;
            rtc.restore(&state.rtc).map_err(BoardError::from)?;
        }
        let (rtc, power) = (Arc::new(Mutex::new(rtc)), Arc::new(Mutex::new(power)));
        ports.insert(SERIAL_PORTS, SERIAL_PORTS_LEN, Arc::<Mutex<SerialPort>>::clone(&serial))?;
        ports.insert(I8042_PORTS, I8042_PORTS_LEN, shared(I8042))?;
        ports.insert(RTC_PORTS, RTC_PORTS_LEN, Arc::<Mutex<Rtc>>::clone(&rtc))?;
        ports.insert(PVPANIC_PORT, PVPANIC_PORT_LEN, shared(Pvpanic))?;
        ports.insert(POWER_PORTS, POWER_PORTS_LEN, Arc::<Mutex<Power>>::clone(&power))?;
        Ok(Self { serial, rtc, power })
    }

    /// Let nothing of the host change them.
    pub(super) fn pause(&self) {
        lock(&self.serial).pause();
    }

    /// Let them go on.
    pub(super) fn resume(&self) {
        lock(&self.serial).resume();
        lock(&self.power).resume();
    }
}

fn serial(
    parts: &Parts<'_>,
    line: devices::irq::IrqLine,
    state: Option<&BoardState>,
) -> Result<Arc<Mutex<SerialPort>>, VmError> {
    let room = EventFd::new(EFD_NONBLOCK).map_err(VmError::resources("make an eventfd"))?;
    let told = room.try_clone().map_err(VmError::resources("make an eventfd"))?;
    let host = parts.host;
    let output = host.console.output(&host.serial, Pace::Bytes)?;
    let port = SerialPort::new(line, Box::new(output), told, state.map(|state| &state.serial));
    let port = Arc::new(Mutex::new(port.map_err(BoardError::from)?));
    if host.spec.serial == Stream::Stdio {
        host.console.connect(Some(Arc::new(input::Serial::new(&port, room))));
    }
    Ok(port)
}

/// A poisoned lock means that a thread panicked; the registers are still there.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
