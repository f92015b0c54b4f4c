//! What a vCPU, the interrupt controllers and the clock hold at one instant, as values that files can keep.
//!
//! KVM's structures are kept as they are, byte for byte: their layout is part of the kernel's stable interface. How they are
//! read and written is the VMM's; here is what they are, and what can be said of them without a kernel.

use kvm_bindings::{
    KVM_MP_STATE_SIPI_RECEIVED, kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state,
    kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::layout::MAX_CPUS;

/// The least size of the XSAVE area, in bytes (KVM_GET_XSAVE), and the most that is believed.
const XSAVE: std::ops::RangeInclusive<usize> = 4096..=64 << 10;
/// KVM's own limits on what it takes at once.
const MOST_MSRS: usize = 4096;
const MOST_LEAVES: usize = 256;

/// A structure of the kernel's, in files the hexadecimal digits of its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Raw<T>(pub T);

impl<T: IntoBytes + Immutable> PartialEq for Raw<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes() == other.0.as_bytes()
    }
}

impl<T: IntoBytes + Immutable> Serialize for Raw<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        hex::serialize(self.0.as_bytes(), serializer)
    }
}

impl<'de, T: FromBytes> Deserialize<'de> for Raw<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = hex::deserialize(deserializer)?;
        let size = size_of::<T>();
        let wrong = || D::Error::custom(format!("{} bytes where there must be {size}", bytes.len()));
        T::read_from_bytes(&bytes).map(Self).map_err(|_| wrong())
    }
}

/// Bytes as hexadecimal digits; for `#[serde(with = "…")]`.
pub mod hex {
    use std::fmt;

    use serde::de::{self, Visitor};
    use serde::{Deserializer, Serializer};

    /// Write them.
    ///
    /// # Errors
    /// What the format says.
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |value: u8| char::from(DIGITS[usize::from(value & 15)]);
        let text: String = bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect();
        serializer.serialize_str(&text)
    }

    /// Read them.
    ///
    /// # Errors
    /// If there is no text of pairs of digits.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Digits;
        impl Visitor<'_> for Digits {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("pairs of hexadecimal digits")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<u8>, E> {
                let digit = |byte: u8| match byte {
                    b'0'..=b'9' => Some(byte - b'0'),
                    b'a'..=b'f' => Some(byte - b'a' + 10),
                    _ => None,
                };
                let (pairs, rest) = text.as_bytes().as_chunks::<2>();
                let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
                let bytes = pairs.iter().map(byte).collect::<Option<Vec<u8>>>();
                bytes
                    .filter(|_| rest.is_empty())
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Digits)
    }
}

/// One vCPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VcpuState {
    /// What CPUID tells it, as it was set (KVM_SET_CPUID2).
    pub cpuid: Vec<Raw<kvm_cpuid_entry2>>,
    /// How fast its TSC counts, in kHz, where the host can tell.
    pub tsc_khz: Option<u32>,
    /// Its TSC.
    pub tsc: Tsc,
    /// Whether it runs, halts or waits for another to start it.
    pub mp_state: Raw<kvm_mp_state>,
    /// The general registers.
    pub regs: Raw<kvm_regs>,
    /// The special registers. A guest in PAE paging has its PDPTEs read from memory again, as at a load of CR3.
    pub sregs: Raw<kvm_sregs>,
    /// The XSAVE area: x87, SSE, AVX and all that follows.
    #[serde(with = "hex")]
    pub xsave: Vec<u8>,
    /// The extended control registers; without XSAVE there are none.
    pub xcrs: Option<Raw<kvm_xcrs>>,
    /// The debug registers.
    pub debugregs: Raw<kvm_debugregs>,
    /// The local APIC.
    pub lapic: Raw<kvm_lapic_state>,
    /// The model-specific registers, but for the TSC.
    pub msrs: Vec<Msr>,
    /// Exceptions, interrupts and NMIs on their way.
    pub events: Raw<kvm_vcpu_events>,
}

/// A model-specific register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msr {
    /// Which.
    pub index: u32,
    /// What is in it.
    pub value: u64,
}

/// A vCPU's TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tsc {
    /// What it showed …
    pub value: u64,
    /// … at this time, in nanoseconds since 1970.
    pub wall_ns: u64,
    /// What is added to the host's (KVM_VCPU_TSC_OFFSET), where the host can tell: how far the vCPUs are apart.
    pub offset: Option<u64>,
}

/// The interrupt controllers and the timer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChipState {
    /// The first PIC, the second, and the I/O APIC (KVM_GET_IRQCHIP).
    pub irqchips: [Raw<kvm_irqchip>; 3],
    /// The programmable interval timer.
    pub pit: Raw<kvm_pit_state2>,
}

/// The paravirtual clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ClockState {
    /// What it showed, in nanoseconds …
    pub ns: u64,
    /// … at this time, in nanoseconds since 1970.
    pub wall_ns: u64,
}

/// A saved state that no machine can have. The message says what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WrongState(String);

/// Whether these can be the vCPUs of a machine that has `cpus`.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_vcpus(vcpus: &[VcpuState], cpus: u32) -> Result<(), WrongState> {
    let wrong = |what: String| Err(WrongState(what));
    if vcpus.len() != cpus as usize || vcpus.len() > MAX_CPUS as usize {
        return wrong(format!("it has {} vCPUs, and its VM {cpus}", vcpus.len()));
    }
    for (index, vcpu) in vcpus.iter().enumerate() {
        let bytes = vcpu.xsave.len();
        if !XSAVE.contains(&bytes) || !bytes.is_multiple_of(4) {
            return wrong(format!("vCPU {index} has an XSAVE area of {bytes} bytes"));
        }
        if vcpu.msrs.len() > MOST_MSRS || vcpu.cpuid.len() > MOST_LEAVES {
            return wrong(format!(
                "vCPU {index} has {} MSRs and {} CPUID leaves",
                vcpu.msrs.len(),
                vcpu.cpuid.len()
            ));
        }
        if vcpu.mp_state.0.mp_state > KVM_MP_STATE_SIPI_RECEIVED {
            return wrong(format!("vCPU {index} is in state {}", vcpu.mp_state.0.mp_state));
        }
    }
    Ok(())
}

impl Tsc {
    /// What it shows at `now_ns` (since 1970), if it counts with `khz`. A clock that went back stands still.
    #[must_use]
    pub fn at(&self, now_ns: u64, khz: u32) -> u64 {
        let passed = u128::from(now_ns.saturating_sub(self.wall_ns));
        let cycles = passed.saturating_mul(khz.into()) / 1_000_000;
        // It wraps, as the register does.
        self.value.wrapping_add(cycles as u64)
    }
}

impl ClockState {
    /// What it shows at `now_ns` (since 1970). A clock that went back stands still.
    #[must_use]
    pub fn at(&self, now_ns: u64) -> u64 {
        self.ns.saturating_add(now_ns.saturating_sub(self.wall_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vCPU that a machine can have.
    fn vcpu() -> VcpuState {
        VcpuState {
            cpuid: vec![Raw(kvm_cpuid_entry2 { function: 1, eax: 0x806ea, ..Default::default() })],
            tsc_khz: Some(2_000_000),
            tsc: Tsc { value: 1, wall_ns: 2, offset: None },
            mp_state: Raw::default(),
            regs: Raw(kvm_regs { rip: 0x1234_5678, ..Default::default() }),
            sregs: Raw::default(),
            xsave: vec![0; 4096],
            xcrs: None,
            debugregs: Raw::default(),
            lapic: Raw::default(),
            msrs: vec![Msr { index: 0x10, value: u64::MAX }],
            events: Raw::default(),
        }
    }

    #[test]
    fn a_vcpu_comes_out_of_a_file_as_it_went_in() {
        let text = serde_json::to_string(&vcpu()).unwrap();
        assert!(text.contains("7856341200000000"), "{text}");
        let read: VcpuState = serde_json::from_str(&text).unwrap();
        assert_eq!(read, vcpu());
        for (good, bad) in
            [("7856341200000000", "78563412"), ("78563412", "7856341x"), ("78563412", "785634120")]
        {
            let error = serde_json::from_str::<VcpuState>(&text.replace(good, bad)).unwrap_err().to_string();
            assert!(error.contains("hexadecimal") || error.contains("where there must be 144"), "{error}");
        }
    }

    #[test]
    fn what_no_machine_can_have_is_refused() {
        let with = |change: fn(&mut VcpuState)| {
            let mut vcpus = [vcpu(), vcpu()];
            change(&mut vcpus[1]);
            check_vcpus(&vcpus, 2).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(with(|_| {}), "");
        assert_eq!(with(|vcpu| vcpu.xsave.truncate(512)), "vCPU 1 has an XSAVE area of 512 bytes");
        assert_eq!(with(|vcpu| vcpu.mp_state.0.mp_state = 99), "vCPU 1 is in state 99");
        assert_eq!(
            with(|vcpu| vcpu.cpuid.resize(999, Raw::default())),
            "vCPU 1 has 1 MSRs and 999 CPUID leaves"
        );
        let text = check_vcpus(&[vcpu()], 2).unwrap_err().to_string();
        assert_eq!(text, "it has 1 vCPUs, and its VM 2");
    }

    #[test]
    fn clocks_go_on_by_the_time_that_passed_and_never_back() {
        let tsc = Tsc { value: 1000, wall_ns: 5_000_000, offset: None };
        assert_eq!(tsc.at(6_000_000, 2_000_000), 1000 + 2_000_000);
        assert_eq!(tsc.at(4_000_000, 2_000_000), 1000);
        // A century at 5 GHz.
        assert_eq!(
            tsc.at(5_000_000 + 3_153_600_000_000_000_000, 5_000_000),
            1000 + 15_768_000_000_000_000_000
        );
        let clock = ClockState { ns: 7, wall_ns: 10 };
        assert_eq!((clock.at(15), clock.at(1), clock.at(u64::MAX)), (12, 7, u64::MAX - 3));
    }
}
