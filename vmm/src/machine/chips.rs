//! The interrupt controllers, the timer and the clock that KVM itself has: made, saved and put back.

use std::sync::Arc;

use arch::regs;
use arch::state::{ChipState, ClockState, Raw};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, kvm_clock_data,
    kvm_irqchip, kvm_pit_config,
};
use kvm_ioctls::VmFd;

use crate::interrupts::Interrupts;
use crate::kvm::KvmError;
use crate::vcpu::wall_ns;

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// Make them, as they are at power-on.
pub(super) fn create(vm: &Arc<VmFd>) -> Result<Arc<Interrupts>, KvmError> {
    // Intel processors without unrestricted guest need three pages for real mode, and one for its page table.
    vm.set_identity_map_address(arch::layout::KVM_IDENTITY_MAP)
        .map_err(KvmError::failed("set the identity map"))?;
    vm.set_tss_address(arch::layout::KVM_TSS as usize).map_err(KvmError::failed("set the TSS address"))?;
    vm.create_irq_chip().map_err(KvmError::failed("create the interrupt controllers"))?;
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
        let mut chip = read_chip(vm, chip_id)?;
        regs::mask_pic(&mut chip);
        write_chip(vm, &chip)?;
    }
    // Port 0x61 is answered too: kernels measure time with its speaker bit.
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(KvmError::failed("create the timer"))?;
    Ok(Arc::new(Interrupts::new(Arc::clone(vm))))
}

fn read_chip(vm: &VmFd, chip_id: u32) -> Result<kvm_irqchip, KvmError> {
    let mut chip = kvm_irqchip { chip_id, ..Default::default() };
    vm.get_irqchip(&mut chip).map_err(KvmError::failed("read an interrupt controller"))?;
    Ok(chip)
}

fn write_chip(vm: &VmFd, chip: &kvm_irqchip) -> Result<(), KvmError> {
    vm.set_irqchip(chip).map_err(KvmError::failed("set an interrupt controller"))
}

/// What they hold. No vCPU runs, and no device interrupts.
pub(super) fn save(vm: &VmFd) -> Result<ChipState, KvmError> {
    let [first, second, io_apic] = CHIPS.map(|id| read_chip(vm, id).map(Raw));
    let pit = vm.get_pit2().map_err(KvmError::failed("read the timer"))?;
    Ok(ChipState { irqchips: [first?, second?, io_apic?], pit: Raw(pit) })
}

/// Let them hold it again.
pub(super) fn restore(vm: &VmFd, state: &ChipState) -> Result<(), KvmError> {
    for (chip_id, saved) in CHIPS.into_iter().zip(&state.irqchips) {
        // Each at its own place, whatever the file says of itself.
        write_chip(vm, &kvm_irqchip { chip_id, ..saved.0 })?;
    }
    vm.set_pit2(&state.pit.0).map_err(KvmError::failed("set the timer"))
}

/// What the paravirtual clock shows.
pub(super) fn save_clock(vm: &VmFd) -> Result<ClockState, KvmError> {
    let clock = vm.get_clock().map_err(KvmError::failed("read the clock"))?;
    Ok(ClockState { ns: clock.clock, wall_ns: wall_ns() })
}

/// Let it show what it would if it had gone on.
///
/// Not by KVM_CLOCK_REALTIME, which does the same where there is a Linux 5.16: one way for all hosts.
pub(super) fn restore_clock(vm: &VmFd, state: &ClockState) -> Result<(), KvmError> {
    let clock = kvm_clock_data { clock: state.at(wall_ns()), ..Default::default() };
    vm.set_clock(&clock).map_err(KvmError::failed("set the clock"))
}
