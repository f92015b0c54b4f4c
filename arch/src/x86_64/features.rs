//! Which features a processor has, by their names in `/proc/cpuinfo`, and what of them a host lacks.
//!
//! Leaves and bits: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E; Linux, Documentation/virt/kvm/x86/cpuid.rst.

use std::fmt;

use kvm_bindings::kvm_cpuid_entry2;

/// A register of a CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

use Register::{Eax, Ebx, Ecx, Edx};

impl Register {
    /// All, in the order of CPUID's results.
    pub const ALL: [Self; 4] = [Eax, Ebx, Ecx, Edx];

    /// What a leaf has there.
    #[must_use]
    pub fn of(self, leaf: &kvm_cpuid_entry2) -> u32 {
        match self {
            Eax => leaf.eax,
            Ebx => leaf.ebx,
            Ecx => leaf.ecx,
            Edx => leaf.edx,
        }
    }

    /// The same, to be changed.
    pub fn of_mut(self, leaf: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Eax => &mut leaf.eax,
            Ebx => &mut leaf.ebx,
            Ecx => &mut leaf.ecx,
            Edx => &mut leaf.edx,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Eax => "eax",
            Ebx => "ebx",
            Ecx => "ecx",
            Edx => "edx",
        }
    }
}

/// A register of which every bit is a feature.
struct Features {
    leaf: u32,
    subleaf: u32,
    register: Register,
    /// Bits that are the VM's own, or change while it runs.
    ignored: u32,
    /// From bit 0 on, `-` for those that have none.
    names: &'static str,
}

const fn features(
    leaf: u32,
    subleaf: u32,
    register: Register,
    ignored: u32,
    names: &'static str,
) -> Features {
    Features { leaf, subleaf, register, ignored, names }
}

const ALL: [Features; 16] = [
    features(
        1,
        0,
        Edx,
        // The number of logical processors.
        1 << 28,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr sse \
         sse2 ss ht tm ia64 pbe",
    ),
    features(
        1,
        0,
        Ecx,
        // x2APIC and the TSC deadline are KVM's own, OSXSAVE follows CR4, and there is a hypervisor.
        1 << 21 | 1 << 24 | 1 << 27 | 1 << 31,
        "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 sse4_2 \
         x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor",
    ),
    features(
        7,
        0,
        Ebx,
        0,
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds mpx rdt_a \
         avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni \
         avx512bw avx512vl",
    ),
    features(
        7,
        0,
        Ecx,
        // OSPKE follows CR4.
        1 << 4,
        "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni avx512_bitalg \
         tme avx512_vpopcntdq - la57 - - - - - rdpid key_locker bus_lock_detect cldemote - movdiri movdir64b enqcmd \
         sgx_lc pks",
    ),
    features(
        7,
        0,
        Edx,
        0,
        "- sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort - \
         tsx_force_abort serialize hybrid tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 \
         spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities ssbd",
    ),
    features(
        7,
        1,
        Eax,
        0,
        "- - - - avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm fsrs fsrc - - - - fred lkgs wrmsrns - \
         amx_fp16 - avx_ifma - - lam",
    ),
    features(
        7,
        1,
        Edx,
        0,
        "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - - prefetchiti",
    ),
    features(7, 2, Edx, 0, "psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no"),
    features(
        0xd,
        0,
        Eax,
        0,
        "xcr0_x87 xcr0_sse xcr0_avx xcr0_bndregs xcr0_bndcsr xcr0_opmask xcr0_zmm_hi256 xcr0_hi16_zmm - xcr0_pkru - - - - \
         - - - xcr0_xtilecfg xcr0_xtiledata",
    ),
    features(0xd, 1, Eax, 0, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    features(
        0x4000_0001,
        0,
        Eax,
        0,
        "kvm_clocksource kvm_nop_io_delay kvm_mmu_op kvm_clocksource2 kvm_async_pf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt \
         - kvm_pv_tlb_flush kvm_async_pf_vmexit kvm_pv_send_ipi kvm_poll_control kvm_pv_sched_yield kvm_async_pf_int \
         kvm_msi_ext_dest_id kvm_hc_map_gpa_range kvm_migration_control",
    ),
    features(
        0x8000_0001,
        0,
        Ecx,
        // The number of cores.
        1 << 1,
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 \
         tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx",
    ),
    features(
        0x8000_0001,
        0,
        Edx,
        0,
        "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp nx - mmxext mmx fxsr fxsr_opt \
         pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    features(0x8000_0007, 0, Edx, 0, "- - - - - - - - constant_tsc"),
    features(
        0x8000_0008,
        0,
        Ebx,
        0,
        "clzero irperf xsaveerptr - rdpru - mba - - wbnoinvd - - ibpb - ibrs stibp ibrs_always_on stibp_always_on - - - - \
         - - amd_ssbd virt_ssbd amd_ssb_no cppc amd_psfd",
    ),
    features(
        0x8000_0021,
        0,
        Eax,
        0,
        "no_nested_data_bp - lfence_rdtsc - - - null_sel_clr_base - autoibrs no_smm_ctl_msr - - - - - - - - - - - - - - - \
         - - sbpb ibpb_brtype srso_no srso_user_kernel_no",
    ),
];

/// What a VM's processor has and this host's does not; in words, what the VM needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// It is by another maker.
    Vendor {
        /// The saved one's, such as `GenuineIntel`.
        saved: String,
        /// This host's.
        here: String,
    },
    /// It reaches further.
    AddressBits {
        /// The saved one's.
        saved: u8,
        /// This host's.
        here: u8,
    },
    /// It can do more: the names of what is lacking.
    Features(Vec<String>),
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vendor { saved, here } => {
                write!(f, "a processor by {saved}, and this host has one by {here}")
            }
            Self::AddressBits { saved, here } => {
                write!(f, "a processor with {saved} bits of physical address, and this host's has {here}")
            }
            Self::Features(names) => {
                write!(f, "a processor with {}, which this host lacks", names.join(", "))
            }
        }
    }
}

/// What the processor that `saved` describes needs of a host that supports `supported` only; `None` if nothing.
#[must_use]
pub fn lacking(saved: &[kvm_cpuid_entry2], supported: &[kvm_cpuid_entry2]) -> Option<Lack> {
    let (vendors, bits) = ([saved, supported].map(vendor), [saved, supported].map(super::cpuid::phys_bits));
    let [its, here] = vendors;
    if its != here {
        return Some(Lack::Vendor { saved: its, here });
    }
    let [its, here] = bits;
    if its > here {
        return Some(Lack::AddressBits { saved: its, here });
    }
    let names: Vec<String> = ALL.iter().flat_map(|features| features.lacking(saved, supported)).collect();
    (!names.is_empty()).then_some(Lack::Features(names))
}

impl Features {
    /// The names of what `saved` has there and `supported` does not.
    fn lacking(&self, saved: &[kvm_cpuid_entry2], supported: &[kvm_cpuid_entry2]) -> Vec<String> {
        let bits = |leaves: &[kvm_cpuid_entry2]| {
            let found = leaves.iter().find(|leaf| (leaf.function, leaf.index) == (self.leaf, self.subleaf));
            found.map_or(0, |leaf| self.register.of(leaf))
        };
        let lacking = bits(saved) & !bits(supported) & !self.ignored;
        (0..32).filter(|bit| lacking >> bit & 1 == 1).map(|bit| self.name(bit)).collect()
    }

    fn name(&self, bit: usize) -> String {
        match self.names.split_whitespace().nth(bit) {
            Some(name) if name != "-" => name.to_owned(),
            _ => format!("cpuid {:#x}.{} {} bit {bit}", self.leaf, self.subleaf, self.register.name()),
        }
    }
}

/// Whether a feature has this name.
pub(super) fn is_name(name: &str) -> bool {
    name != "-" && ALL.iter().any(|features| features.names.split_whitespace().any(|known| known == name))
}

/// Take the feature called `name` away, wherever it is told of.
pub(super) fn remove(name: &str, leaves: &mut [kvm_cpuid_entry2]) {
    for features in &ALL {
        let named = features.names.split_whitespace().enumerate().filter(|(_, known)| *known == name);
        let mask = named.fold(0_u32, |mask, (bit, _)| mask | 1 << bit);
        let here =
            |leaf: &&mut kvm_cpuid_entry2| (leaf.function, leaf.index) == (features.leaf, features.subleaf);
        for leaf in leaves.iter_mut().filter(here) {
            *features.register.of_mut(leaf) &= !mask;
        }
    }
}

/// The maker's twelve letters.
fn vendor(leaves: &[kvm_cpuid_entry2]) -> String {
    let words = leaves.iter().find(|leaf| leaf.function == 0).map(|leaf| [leaf.ebx, leaf.edx, leaf.ecx]);
    let bytes = words.unwrap_or_default().map(u32::to_le_bytes);
    // What no processor says is not printed.
    bytes
        .as_flattened()
        .iter()
        .map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { '?' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn host() -> Vec<kvm_cpuid_entry2> {
        let word = |at: usize| u32::from_le_bytes(b"GenuineIntel"[at..at + 4].try_into().unwrap());
        vec![
            leaf(0, 0, [0x1f, word(0), word(8), word(4)]),
            leaf(1, 0, [0x806ea, 0, 1, 1]),
            leaf(7, 0, [0, 1 << 5, 0, 0]),
            leaf(0x8000_0008, 0, [39, 0, 0, 0]),
        ]
    }

    fn text(change: impl Fn(&mut Vec<kvm_cpuid_entry2>)) -> Option<String> {
        let mut saved = host();
        change(&mut saved);
        lacking(&saved, &host()).map(|lack| lack.to_string())
    }

    #[test]
    fn what_a_host_lacks_is_named_with_what_to_do() {
        assert_eq!(text(|_| {}), None);
        // Less is no reason, nor what the VM has of its own.
        assert_eq!(text(|saved| saved[2].ebx = 0), None);
        assert_eq!(text(|saved| saved[1].ecx |= 1 << 31 | 1 << 27), None);
        let names = text(|saved| saved[2].ebx |= 1 << 16 | 1 << 17 | 1 << 22).unwrap();
        assert!(
            names.starts_with(
                "a processor with avx512f, avx512dq, cpuid 0x7.0 ebx bit 22, which this host lacks"
            ),
            "{names}"
        );
        let more = text(|saved| saved.push(leaf(7, 1, [1 << 4, 0, 0, 0]))).unwrap();
        assert!(more.contains("with avx_vnni, which"), "{more}");
    }

    #[test]
    fn another_maker_and_a_longer_reach_are_named() {
        let maker = text(|saved| saved[0].ebx = 0).unwrap();
        assert!(maker.contains("by ????ineIntel, and this host has one by GenuineIntel"), "{maker}");
        let reach = text(|saved| saved[3].eax = 46).unwrap();
        assert!(reach.contains("46 bits of physical address, and this host's has 39"), "{reach}");
    }

    #[test]
    fn no_register_has_more_names_than_bits() {
        for features in &ALL {
            assert!(features.names.split_whitespace().count() <= 32, "{:#x}", features.leaf);
        }
        let last = |at: usize| ALL[at].name(31);
        assert_eq!(
            (last(0), last(1), last(2), last(3), last(4)),
            ("pbe".into(), "hypervisor".into(), "avx512vl".into(), "pks".into(), "ssbd".into())
        );
        assert_eq!((last(12), ALL[11].name(29)), ("3dnow".to_owned(), "mwaitx".to_owned()));
    }
}
