//! One entry into the guest, and the answer to the exit that ends it.

use devices::bus::Effect;
use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::count::{Reason, VcpuCounters};
use super::failure::Cause;
use crate::board::Board;

/// What to do after an exit.
pub(super) enum Next {
    /// Enter the guest again.
    Go,
    /// Look at the goal first: it was kicked.
    Look,
    /// A driver has started its virtio device: worth a word, and nothing to wait for.
    DriverReady,
    /// Tell the `vmm` thread.
    Tell(Effect),
    /// The processor gave up: three faults in a row.
    TripleFault,
    /// It cannot go on.
    Fail(Cause),
}

/// Enter the guest once, and count why it was left.
pub(super) fn run_once(vcpu: &mut VcpuFd, board: &Board, counters: &VcpuCounters) -> Next {
    let page: *const kvm_run = vcpu.get_kvm_run();
    let exit = vcpu.run();
    counters.exit(reason(&exit));
    match exit {
        Ok(VcpuExit::IoIn(port, data)) => {
            for unit in data.chunks_mut(port_width(page)) {
                board.ports.read(port.into(), unit);
            }
            Next::Go
        }
        Ok(VcpuExit::IoOut(port, data)) => write_port(port, data, port_width(page), board),
        Ok(exit) => answer(exit, board),
        Err(error) => match error.errno() {
            libc::EINTR | libc::EAGAIN => Next::Look,
            _ => Next::Fail(Cause::Run(error.into())),
        },
    }
}

fn reason(exit: &Result<VcpuExit<'_>, kvm_ioctls::Error>) -> Reason {
    match exit {
        Ok(VcpuExit::IoIn(..)) => Reason::IoIn,
        Ok(VcpuExit::IoOut(..)) => Reason::IoOut,
        Ok(VcpuExit::MmioRead(..)) => Reason::MmioRead,
        Ok(VcpuExit::MmioWrite(..)) => Reason::MmioWrite,
        Ok(VcpuExit::Hlt) => Reason::Hlt,
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) | Err(_) => Reason::Interrupted,
        Ok(_) => Reason::Other,
    }
}

/// The bytes of one access to a port: a string instruction (`rep outsb`) makes many in one exit.
fn port_width(page: *const kvm_run) -> usize {
    // SAFETY: the page is the vCPU's, which is borrowed for longer than this call, and after KVM_EXIT_IO this is the
    // member of the union that KVM filled in. The data that the exit lends lies behind the structure.
    let size = unsafe { (*page).__bindgen_anon_1.io.size };
    usize::from(size).max(1)
}

/// One write after the other; what the machine is to do ends them.
fn write_port(port: u16, data: &[u8], width: usize, board: &Board) -> Next {
    for unit in data.chunks(width) {
        match act(board.ports.write(port.into(), unit), board) {
            Next::Go => {}
            next => return next,
        }
    }
    Next::Go
}

fn answer(exit: VcpuExit<'_>, board: &Board) -> Next {
    match exit {
        VcpuExit::MmioRead(address, data) => {
            board.mmio.read(address, data);
            Next::Go
        }
        VcpuExit::MmioWrite(address, data) => act(board.mmio.write(address, data), board),
        VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt => Next::Look,
        VcpuExit::Shutdown => Next::TripleFault,
        VcpuExit::InternalError => Next::Fail(Cause::Internal),
        VcpuExit::FailEntry(reason, cpu) => Next::Fail(Cause::Entry { reason, cpu }),
        other => Next::Fail(Cause::Unexpected(format!("{other:?}"))),
    }
}

/// What belongs to the board is done here, by the vCPU that asked, before its next instruction; the rest is for
/// the `vmm` thread.
fn act(effect: Effect, board: &Board) -> Next {
    match effect {
        Effect::None => Next::Go,
        Effect::MoveBars => {
            board.settle_bars();
            Next::Go
        }
        Effect::DriverReady => Next::DriverReady,
        Effect::Shutdown | Effect::Reset | Effect::Panicked => Next::Tell(effect),
    }
}
