//! KVM's side of interrupts and doorbells: irqfd, GSI routing and ioeventfd.
//!
//! Lock order: the route table's lock is taken last and held over the one ioctl that installs the table.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::irq::{Doorbell, Doorbells, IrqLine, MsiController, MsiMessage, MsiVector};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// GSIs below this are the pins of the I/O APIC, and below [`PIC_PINS`] of the PICs too.
const IO_APIC_PINS: u32 = 24;
const PIC_PINS: u32 = 16;
/// KVM's own limit on GSIs (KVM_MAX_IRQ_ROUTES).
const MAX_GSI: u32 = 4096;

/// What a GSI above the pins stands for.
enum Route {
    /// Given out, delivered nowhere.
    Masked,
    /// Delivered so.
    To(MsiMessage),
}

/// Interrupts and doorbells of one KVM VM. Shared by all its devices.
pub struct Interrupts {
    vm: Arc<VmFd>,
    table: Mutex<Table>,
}

/// Where GSIs above the pins go.
#[derive(Default)]
struct Table {
    routes: BTreeMap<u32, Route>,
    /// Changes wait for [`HeldRoutes::install`].
    held: bool,
}

/// While this lives, changes of routes are not told to KVM, which takes time for each: many are made at once.
#[must_use = "the routes that were changed are not in use before they are installed"]
pub struct HeldRoutes<'a>(&'a Interrupts);

impl HeldRoutes<'_> {
    /// Tell KVM of all of them.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn install(self) -> io::Result<()> {
        let mut table = self.0.lock();
        table.held = false;
        if table.routes.is_empty() { Ok(()) } else { self.0.install(&table.routes) }
    }
}

impl Drop for HeldRoutes<'_> {
    fn drop(&mut self) {
        self.0.lock().held = false;
    }
}

impl Interrupts {
    /// For a VM whose irqchip exists.
    #[must_use]
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, table: Mutex::default() }
    }

    /// A line to pin `gsi` of the I/O APIC.
    ///
    /// # Errors
    /// If the host is out of file descriptors or the pin is taken.
    pub fn line(&self, gsi: u32) -> io::Result<IrqLine> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        self.vm.register_irqfd(&event, gsi)?;
        Ok(IrqLine::new(event))
    }

    /// Change many routes from here on, and install them together.
    pub fn hold_routes(&self) -> HeldRoutes<'_> {
        self.lock().held = true;
        HeldRoutes(self)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hand KVM the whole table: the pins as they are by default, and what MSIs are routed.
    fn install(&self, routes: &BTreeMap<u32, Route>) -> io::Result<()> {
        let mut entries = pin_entries();
        entries.extend(routes.iter().filter_map(|(gsi, route)| match route {
            Route::To(message) => Some(msi_entry(*gsi, *message)),
            Route::Masked => None,
        }));
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.vm.set_gsi_routing(&table)?;
        Ok(())
    }
}

fn pin_entries() -> Vec<kvm_irq_routing_entry> {
    let mut entries = Vec::new();
    for gsi in 0..IO_APIC_PINS {
        entries.push(pin_entry(gsi, KVM_IRQCHIP_IOAPIC, gsi));
        if gsi < PIC_PINS / 2 {
            entries.push(pin_entry(gsi, KVM_IRQCHIP_PIC_MASTER, gsi));
        } else if gsi < PIC_PINS {
            entries.push(pin_entry(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - PIC_PINS / 2));
        }
    }
    entries
}

fn pin_entry(gsi: u32, chip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip.irqchip = chip;
    entry.u.irqchip.pin = pin;
    entry
}

fn msi_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    // Halves of the address, by intent.
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}

impl MsiController for Interrupts {
    fn allocate(&self) -> io::Result<MsiVector> {
        let Table { routes, .. } = &mut *self.lock();
        let id = (IO_APIC_PINS..MAX_GSI)
            .find(|gsi| !routes.contains_key(gsi))
            .ok_or_else(|| io::Error::new(io::ErrorKind::QuotaExceeded, "all MSI vectors are taken"))?;
        let event = EventFd::new(EFD_NONBLOCK)?;
        self.vm.register_irqfd(&event, id)?;
        routes.insert(id, Route::Masked);
        Ok(MsiVector { id, line: IrqLine::new(event) })
    }

    fn route(&self, vector: &MsiVector, message: Option<MsiMessage>) -> io::Result<()> {
        let mut table = self.lock();
        table.routes.insert(vector.id, message.map_or(Route::Masked, Route::To));
        if table.held { Ok(()) } else { self.install(&table.routes) }
    }

    fn free(&self, vector: MsiVector) {
        let Table { routes, .. } = &mut *self.lock();
        // An entry without its irqfd does nothing; the next change takes it out of KVM's table.
        routes.remove(&vector.id);
        if let Err(error) = self.vm.unregister_irqfd(vector.line.event(), vector.id) {
            log::debug!("MSI vector {}: {}", vector.id, io::Error::from(error));
        }
    }
}

impl Doorbells for Interrupts {
    fn register(&self, bell: Doorbell, event: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(bell.address);
        match bell.value {
            Some(value) => self.vm.register_ioevent(event, &address, value)?,
            None => self.vm.register_ioevent(event, &address, NoDatamatch)?,
        }
        Ok(())
    }

    fn unregister(&self, bell: Doorbell, event: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(bell.address);
        match bell.value {
            Some(value) => self.vm.unregister_ioevent(event, &address, value)?,
            None => self.vm.unregister_ioevent(event, &address, NoDatamatch)?,
        }
        Ok(())
    }
}
