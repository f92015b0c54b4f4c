//! One entry into the guest, and the answer to the exit that ends it.

use devices::bus::Effect;
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::failure::Cause;
use crate::board::Board;

/// What to do after an exit.
pub(super) enum Next {
    /// Enter the guest again.
    Go,
    /// Look at the goal first: it was kicked.
    Look,
    /// Tell the `vmm` thread.
    Tell(Effect),
    /// The processor gave up: three faults in a row.
    TripleFault,
    /// It cannot go on.
    Fail(Cause),
}

/// Enter the guest once.
pub(super) fn run_once(vcpu: &mut VcpuFd, board: &Board) -> Next {
    match vcpu.run() {
        Ok(exit) => answer(exit, board),
        Err(error) => match error.errno() {
            libc::EINTR | libc::EAGAIN => Next::Look,
            _ => Next::Fail(Cause::Run(error.into())),
        },
    }
}

fn answer(exit: VcpuExit<'_>, board: &Board) -> Next {
    match exit {
        VcpuExit::MmioRead(address, data) => {
            board.mmio.read(address, data);
            Next::Go
        }
        VcpuExit::MmioWrite(address, data) => act(board.mmio.write(address, data), board),
        VcpuExit::IoIn(port, data) => {
            board.ports.read(port.into(), data);
            Next::Go
        }
        VcpuExit::IoOut(port, data) => act(board.ports.write(port.into(), data), board),
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
        Effect::Shutdown | Effect::Reset | Effect::Panicked => Next::Tell(effect),
    }
}
