//! What the `vmm` thread waits for.

use devices::bus::Effect;

use crate::control::Request;
use crate::error::VmError;

/// One thing for the `vmm` thread to act on.
#[derive(Debug)]
pub(crate) enum Event {
    /// Somebody asks for something.
    Request(Request),
    /// A vCPU's access asks something of the whole machine. That vCPU waits.
    Effect(Effect),
    /// A vCPU cannot go on.
    Failed(VmError),
}
