//! CPU templates: what of a host's processor a VM is not to show, or is to show otherwise, so that its snapshots can be restored on
//! hosts with less.
//!
//! ```toml
//! without = ["avx512f", "avx512dq", "xcr0_opmask"]     # features by their names
//!
//! [[cpuid]]                                           # bits of a CPUID leaf: 0 and 1 are set so, x stays
//! leaf = 0x7
//! subleaf = 0x0
//! ebx = "0bxx00_xxxx_xxxx_xxxx"
//!
//! [[msr]]                                             # bits of an MSR
//! index = 0x10a
//! bits = "0bxxxx_xxx0"
//! ```
//! Digits on the left that are not written stay as they are.

use std::fmt;
use std::str::FromStr;

use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};

use super::features::{self, Register};
use super::state::Msr;

/// What to change of a processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CpuTemplate {
    /// Features that are not shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<Feature>,
    /// Bits of CPUID.
    #[serde(default, rename = "cpuid", skip_serializing_if = "Vec::is_empty")]
    pub leaves: Vec<LeafBits>,
    /// Bits of MSRs.
    #[serde(default, rename = "msr", skip_serializing_if = "Vec::is_empty")]
    pub msrs: Vec<MsrBits>,
}

/// The name of a feature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Feature(String);

impl TryFrom<String> for Feature {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match features::is_name(&name) {
            true => Ok(Self(name)),
            false => Err(format!(
                "there is no feature called '{name}': use a name of the flags in /proc/cpuinfo, or [[cpuid]]"
            )),
        }
    }
}

impl From<Feature> for String {
    fn from(feature: Feature) -> Self {
        feature.0
    }
}

/// Bits of a CPUID leaf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LeafBits {
    /// EAX before CPUID.
    pub leaf: u32,
    /// ECX before CPUID.
    #[serde(default)]
    pub subleaf: u32,
    /// Of EAX.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eax: Option<Bits<32>>,
    /// Of EBX.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ebx: Option<Bits<32>>,
    /// Of ECX.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecx: Option<Bits<32>>,
    /// Of EDX.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edx: Option<Bits<32>>,
}

/// Bits of an MSR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MsrBits {
    /// Which.
    pub index: u32,
    /// Of it.
    pub bits: Bits<64>,
}

/// Bits of a register that has so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bits<const WIDTH: usize> {
    /// Those that are changed.
    changed: u64,
    /// What they become.
    value: u64,
}

impl<const WIDTH: usize> Bits<WIDTH> {
    fn apply(self, register: u64) -> u64 {
        (register & !self.changed) | self.value
    }
}

impl<const WIDTH: usize> FromStr for Bits<WIDTH> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' are no bits: write 0b and then up to {WIDTH} of 0, 1 and x, with _ between them"
            )
        };
        let digits = text.strip_prefix("0b").ok_or_else(wrong)?.bytes().filter(|byte| *byte != b'_');
        let (mut changed, mut value, mut count) = (0_u64, 0_u64, 0);
        for digit in digits {
            let (of_changed, of_value) = match digit {
                b'0' => (1, 0),
                b'1' => (1, 1),
                b'x' => (0, 0),
                _ => return Err(wrong()),
            };
            (changed, value) = (changed << 1 | of_changed, value << 1 | of_value);
            count += 1;
        }
        if (1..=WIDTH).contains(&count) { Ok(Self { changed, value }) } else { Err(wrong()) }
    }
}

impl<const WIDTH: usize> TryFrom<String> for Bits<WIDTH> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl<const WIDTH: usize> fmt::Display for Bits<WIDTH> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0b")?;
        for bit in (0..WIDTH).rev() {
            let digit = match (self.changed >> bit & 1, self.value >> bit & 1) {
                (0, _) => "x",
                (_, 0) => "0",
                _ => "1",
            };
            f.write_str(digit)?;
            if bit % 4 == 0 && bit > 0 {
                f.write_str("_")?;
            }
        }
        Ok(())
    }
}

impl<const WIDTH: usize> From<Bits<WIDTH>> for String {
    fn from(bits: Bits<WIDTH>) -> Self {
        bits.to_string()
    }
}

impl LeafBits {
    fn of(&self, register: Register) -> Option<Bits<32>> {
        match register {
            Register::Eax => self.eax,
            Register::Ebx => self.ebx,
            Register::Ecx => self.ecx,
            Register::Edx => self.edx,
        }
    }
}

impl CpuTemplate {
    /// Change what CPUID tells. A leaf that is not there stays away.
    pub fn apply(&self, leaves: &mut [kvm_cpuid_entry2]) {
        for Feature(name) in &self.without {
            features::remove(name, leaves);
        }
        for bits in &self.leaves {
            let here =
                |leaf: &&mut kvm_cpuid_entry2| (leaf.function, leaf.index) == (bits.leaf, bits.subleaf);
            for leaf in leaves.iter_mut().filter(here) {
                for register in Register::ALL {
                    if let Some(bits) = bits.of(register) {
                        let value = register.of_mut(leaf);
                        // Bits of 32 reach no further.
                        *value = bits.apply((*value).into()) as u32;
                    }
                }
            }
        }
    }

    /// What an MSR is to be that is `msr`.
    #[must_use]
    pub fn msr(&self, msr: Msr) -> Msr {
        let masks = self.msrs.iter().filter(|bits| bits.index == msr.index);
        Msr { value: masks.fold(msr.value, |value, mask| mask.bits.apply(value)), ..msr }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bits<const WIDTH: usize>(text: &str) -> Bits<WIDTH> {
        text.parse().unwrap()
    }

    #[test]
    fn bits_are_changed_as_written_and_others_stay() {
        let change = bits::<32>("0b1_x0");
        assert_eq!(change.apply(0b0001), 0b0100);
        assert_eq!(change.apply(0xffff_fff3), 0xffff_fff6);
        for wrong in ["", "0b", "0b2", "1x", "0bX", "0b_", &format!("0b{}", "x".repeat(33))] {
            let error = wrong.parse::<Bits<32>>().unwrap_err();
            assert!(error.starts_with(&format!("'{wrong}' are no bits: write 0b")), "{error}");
        }
        assert_eq!(bits::<64>(&format!("0b1{}", "0".repeat(63))).apply(7), 1 << 63);
    }

    #[test]
    fn a_template_takes_features_away_by_name_and_by_bit() {
        let template = CpuTemplate {
            without: vec![Feature::try_from("avx512f".to_owned()).unwrap()],
            leaves: vec![LeafBits {
                leaf: 7,
                subleaf: 0,
                eax: None,
                ebx: Some(bits("0b0xxxxx")),
                ecx: None,
                edx: Some(bits("0b1")),
            }],
            msrs: vec![MsrBits { index: 0x10a, bits: bits("0b0x") }],
        };
        let mut leaves = [
            kvm_cpuid_entry2 { function: 7, ebx: 1 << 16 | 1 << 17 | 0b11_1111, ..Default::default() },
            kvm_cpuid_entry2 { function: 7, index: 1, ebx: u32::MAX, ..Default::default() },
        ];
        template.apply(&mut leaves);
        assert_eq!((leaves[0].ebx, leaves[0].edx), (1 << 17 | 0b01_1111, 1));
        assert_eq!(leaves[1].ebx, u32::MAX);
        assert_eq!(template.msr(Msr { index: 0x10a, value: 3 }).value, 1);
        assert_eq!(template.msr(Msr { index: 0x10b, value: 3 }).value, 3);
        let unknown = Feature::try_from("avx1024".to_owned()).unwrap_err();
        assert!(unknown.starts_with("there is no feature called 'avx1024': use "), "{unknown}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same(changed: u64, value: u64, text: String) {
            let bits = Bits::<64> { changed, value: value & changed };
            prop_assert_eq!(bits.to_string().parse::<Bits<64>>(), Ok(bits));
            // Whatever is written, nothing ends the program.
            let _ = text.parse::<Bits<32>>();
        }
    }
}
