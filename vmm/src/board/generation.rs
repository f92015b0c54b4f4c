//! The VM generation ID: 16 bytes of guest memory that are others in each life of the VM, so that a guest which is one of several
//! with the same memory knows it and draws its random numbers anew (Microsoft, "Virtual Machine Generation ID").

use arch::layout::{GENERATION, GENERATION_LEN};
use arch::memory::GuestRam;
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::{Bytes, GuestAddress};

use crate::error::VmError;

/// Write a new one to guest memory.
///
/// # Errors
/// If the host has no random numbers. Guest memory reaches there.
pub(super) fn renew(ram: &GuestRam) -> Result<(), VmError> {
    let mut id = [0; GENERATION_LEN];
    loop {
        // So few bytes come all at once.
        match getrandom(&mut id, GetRandomFlags::empty()) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(VmError::resources("draw random numbers")(error.into())),
        }
    }
    let written = ram.write_slice(&id, GuestAddress(GENERATION));
    written.map_err(|error| VmError::resources("write to guest memory")(std::io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_another() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let mut seen = vec![[0; GENERATION_LEN]];
        for _ in 0..10 {
            renew(&ram).unwrap();
            let id: [u8; GENERATION_LEN] = ram.read_obj(GuestAddress(GENERATION)).unwrap();
            assert!(!seen.contains(&id));
            seen.push(id);
        }
    }
}
