//! Everything of a machine but its memory and its disks, at one instant.
//!
//! What is in here the guest has seen or can see; no path of the host ever is. It is checked whole before anything is built of
//! it: by sizes and numbers in [`VmState::check`], by each device that is given its part, and at last by KVM.

use std::path::Path;

use arch::features::Lack;
use arch::state::{ChipState, ClockState, VcpuState, WrongState};
use devices::storage::Storage;
use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};

use super::envelope::{Envelope, EnvelopeError, Problem};
use super::manifest::Sum;
use crate::board::BoardState;
use crate::spec::{Memory, VmSpec};

/// The name of the file in a snapshot's directory.
pub const STATE: &str = "state";

/// The versions of the sections that this build writes; it reads these and all before.
mod version {
    pub(super) const MACHINE: u32 = 1;
    pub(super) const VCPU: u32 = 1;
    pub(super) const CHIPS: u32 = 1;
    pub(super) const CLOCK: u32 = 1;
    pub(super) const BOARD: u32 = 1;
}

/// A saved machine that cannot be here.
#[derive(Debug, thiserror::Error)]
pub enum StateMismatch {
    /// It makes no sense.
    #[error("the snapshot's state makes no sense: {0}")]
    Wrong(#[from] WrongState),
    /// Its memory is not what the spec says.
    #[error("the snapshot has {saved} of memory, and its spec {spec}: one of them was changed")]
    Memory {
        /// In the state.
        saved: Memory,
        /// In the spec.
        spec: Memory,
    },
    /// This host's processors are not enough.
    #[error("the snapshot needs {0}: restore it on such a host, or take it with --cpu-template")]
    Processor(Lack),
}

/// A machine, but for its memory and its disks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct VmState {
    /// How large its memory is, in bytes.
    pub(crate) memory: u64,
    pub(crate) vcpus: Vec<VcpuState>,
    pub(crate) chips: ChipState,
    pub(crate) clock: ClockState,
    pub(crate) board: BoardState,
}

/// What is said of the machine as a whole.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Summary {
    memory: u64,
    cpus: usize,
}

impl VmState {
    /// Write it as the new file `path`. Returns what the file must be.
    ///
    /// # Errors
    /// If there is such a file, or the host fails.
    pub(crate) fn write(&self, storage: &dyn Storage, path: &Path) -> Result<Sum, EnvelopeError> {
        let envelope = self.envelope().map_err(|problem| EnvelopeError::new(path, problem))?;
        envelope.write(storage, path)
    }

    fn envelope(&self) -> Result<Envelope, Problem> {
        let mut envelope = Envelope::new();
        let summary = Summary { memory: self.memory, cpus: self.vcpus.len() };
        envelope.add("machine", version::MACHINE, "", &summary)?;
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            envelope.add("vcpu", version::VCPU, index.to_string(), vcpu)?;
        }
        envelope.add("chips", version::CHIPS, "", &self.chips)?;
        envelope.add("clock", version::CLOCK, "", &self.clock)?;
        envelope.add("board", version::BOARD, "", &self.board)?;
        Ok(envelope)
    }

    /// Read the file `path`.
    ///
    /// # Errors
    /// If it is damaged, not for this build, or the host fails.
    pub(crate) fn read(storage: &dyn Storage, path: &Path) -> Result<Self, EnvelopeError> {
        let envelope = Envelope::read(storage, path)?;
        Self::of(&envelope).map_err(|problem| EnvelopeError::new(path, problem))
    }

    fn of(envelope: &Envelope) -> Result<Self, Problem> {
        let Summary { memory, cpus } = envelope.one("machine", version::MACHINE)?;
        let mut vcpus = Vec::new();
        for (index, section) in envelope.all("vcpu").enumerate() {
            if section.id() != index.to_string() {
                return Err(Problem::Wrong(format!("vCPU {:?} stands where {index} should", section.id())));
            }
            vcpus.push(section.body(version::VCPU)?);
        }
        if vcpus.len() != cpus {
            return Err(Problem::Wrong(format!("it has {} vCPUs, and should have {cpus}", vcpus.len())));
        }
        Ok(Self {
            memory,
            vcpus,
            chips: envelope.one("chips", version::CHIPS)?,
            clock: envelope.one("clock", version::CLOCK)?,
            board: envelope.one("board", version::BOARD)?,
        })
    }

    /// What CPUID tells the first vCPU.
    pub(crate) fn cpuid(&self) -> Vec<kvm_cpuid_entry2> {
        self.vcpus.first().map(|vcpu| vcpu.cpuid.iter().map(|leaf| leaf.0).collect()).unwrap_or_default()
    }

    /// Whether a VM with this spec can be put into it, on a host whose KVM supports this.
    ///
    /// # Errors
    /// The first reason why not.
    pub(crate) fn check(&self, spec: &VmSpec, supported: &[kvm_cpuid_entry2]) -> Result<(), StateMismatch> {
        arch::state::check_vcpus(&self.vcpus, spec.cpus.into())?;
        let (saved, size) = (Memory(self.memory), spec.memory.size);
        if saved != size {
            return Err(StateMismatch::Memory { saved, spec: size });
        }
        match arch::features::lacking(&self.cpuid(), supported) {
            Some(lack) => Err(StateMismatch::Processor(lack)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A machine with one vCPU, a console, an entropy source, a balloon and a disk, as the first version wrote it.
    const FIRST: &[u8] = include_bytes!("fixtures/state-1");
    /// What stands before the sections.
    const HEADER: usize = 32;

    fn first() -> VmState {
        VmState::of(&Envelope::decode(FIRST).unwrap()).unwrap()
    }

    fn spec(cpus: u8, memory: &str) -> VmSpec {
        let text = format!(
            "kernel = \"/k\"\ncmdline = \"\"\ncpus = {cpus}\nmemory = \"{memory}\"\ntransport = \"mmio\"\n\
             serial = \"null\"\nconsole = \"null\"\n"
        );
        VmSpec::from_toml(&text).unwrap()
    }

    #[test]
    fn a_state_of_the_first_version_is_read_and_written_as_the_same() {
        let state = first();
        assert_eq!((state.memory, state.vcpus.len()), (64 << 20, 1));
        assert_ne!(state.vcpus[0].regs.0.rip, 0);
        let again = Envelope::decode(&state.envelope().unwrap().encode().unwrap()).unwrap();
        assert_eq!(VmState::of(&again).unwrap(), state);
    }

    #[test]
    fn a_state_that_is_for_another_machine_is_refused() {
        let (state, cpuid) = (first(), first().cpuid());
        let text = |spec: &VmSpec, cpuid: &[_]| state.check(spec, cpuid).map_err(|error| error.to_string());
        assert_eq!(text(&spec(1, "64M"), &cpuid), Ok(()));
        let cpus = text(&spec(2, "64M"), &cpuid).unwrap_err();
        assert_eq!(cpus, "the snapshot's state makes no sense: it has 1 vCPUs, and its VM 2");
        let memory = text(&spec(1, "128M"), &cpuid).unwrap_err();
        assert!(memory.starts_with("the snapshot has 64M of memory, and its spec 128M"), "{memory}");
        let mut weaker = cpuid.clone();
        weaker.iter_mut().filter(|leaf| leaf.function == 1).for_each(|leaf| leaf.edx &= !(1 << 26));
        let lack = text(&spec(1, "64M"), &weaker).unwrap_err();
        assert!(
            lack.starts_with("the snapshot needs a processor with sse2, which this host lacks: "),
            "{lack}"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        /// As if whoever changed it had made the checksum right.
        #[test]
        fn no_change_of_a_state_ends_the_program(
            at in HEADER..FIRST.len(),
            len in 0..40usize,
            new in "[0-9a-f\"{}\\[\\],:\n-]{0,40}",
        ) {
            let mut text = FIRST[HEADER..].to_vec();
            let start = at - HEADER;
            text.splice(start..(start + len).min(text.len()), new.bytes());
            let mut envelope = Envelope::new();
            for line in text.split(|byte| *byte == b'\n') {
                let Ok(value) = serde_json::from_slice::<serde_json::Value>(line) else { continue };
                let word = |key: &str| value.get(key).and_then(|word| word.as_str()).unwrap_or_default();
                let body = value.get("body").cloned().unwrap_or_default();
                envelope.add(word("kind"), 1, word("id"), &body).unwrap();
            }
            if let Ok(state) = VmState::of(&envelope) {
                let _ = state.check(&spec(1, "64M"), &first().cpuid());
            }
        }
    }
}
