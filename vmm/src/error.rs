//! Why a VM could not start or go on.

/// Why a VM could not start or go on. Each message names the thing and the fix.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The `vmm` thread is gone without a word: a defect of skiff.
    #[error("the VM's control thread ended unexpectedly; this is a defect of skiff, please report it")]
    Vanished,
}
