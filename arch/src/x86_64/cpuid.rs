//! What CPUID tells the guest: what KVM supports, less what a VM is not to use, with the VM's own topology.
//!
//! All vCPUs are cores of one package, with one thread each; a vCPU's APIC id is its index. Leaf numbers and
//! bits: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E; Linux, Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// What decides a VM's CPUID beside the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidSpec {
    /// How many vCPUs the VM has, from 1 to [`crate::layout::MAX_CPUS`].
    pub cpus: u32,
    /// The vCPUs' TSC frequency (KVM_GET_TSC_KHZ), if known.
    pub tsc_khz: Option<u32>,
    /// Whether KVM has KVM_CAP_TSC_DEADLINE_TIMER with its in-kernel local APIC.
    pub tsc_deadline: bool,
}

/// The frequency of KVM's local APIC timer before its divider, in kHz.
const APIC_BUS_KHZ: u32 = 1_000_000;
/// KVM's signature: the first of the leaves for hypervisors.
const HYPERVISOR: u32 = 0x4000_0000;
/// Frequencies, as VMware and others tell them: TSC and APIC bus in kHz.
const HYPERVISOR_TIMING: u32 = 0x4000_0010;

mod leaf1 {
    pub const ECX_MONITOR: u32 = 1 << 3;
    pub const ECX_VMX: u32 = 1 << 5;
    pub const ECX_PDCM: u32 = 1 << 15;
    pub const ECX_X2APIC: u32 = 1 << 21;
    pub const ECX_TSC_DEADLINE: u32 = 1 << 24;
    pub const ECX_HYPERVISOR: u32 = 1 << 31;
    pub const EDX_HTT: u32 = 1 << 28;
}

mod amd_features {
    pub const ECX_CMP_LEGACY: u32 = 1 << 1;
    pub const ECX_SVM: u32 = 1 << 2;
    pub const ECX_PERFCTR_CORE: u32 = 1 << 23;
}

/// The leaves for vCPU `index`, made of those that KVM_GET_SUPPORTED_CPUID returned.
#[must_use]
pub fn build(supported: &[kvm_cpuid_entry2], spec: &CpuidSpec, index: u32) -> Vec<kvm_cpuid_entry2> {
    let amd = is_amd(supported);
    let mut entries: Vec<_> =
        supported.iter().filter(|e| !matches!(e.function, 0xb | 0x1f)).copied().collect();
    for entry in &mut entries {
        adjust(entry, spec, index, amd);
    }
    for function in [0xb, 0x1f] {
        if supported.iter().any(|e| e.function == function) {
            entries.extend(topology_leaves(function, spec.cpus, index));
        }
    }
    if let (Some(tsc_khz), true) = (spec.tsc_khz, entries.iter().any(|e| e.function == HYPERVISOR)) {
        let timing = kvm_cpuid_entry2 {
            function: HYPERVISOR_TIMING,
            eax: tsc_khz,
            ebx: APIC_BUS_KHZ,
            ..Default::default()
        };
        entries.retain(|e| e.function != HYPERVISOR_TIMING);
        entries.push(timing);
    }
    entries.sort_by_key(|e| (e.function, e.index));
    entries
}

/// How many bits of physical address the host's processor has.
#[must_use]
pub fn phys_bits(supported: &[kvm_cpuid_entry2]) -> u8 {
    let leaf = supported.iter().find(|e| e.function == 0x8000_0008);
    leaf.map_or(36, |e| e.eax as u8).clamp(32, 52)
}

fn is_amd(supported: &[kvm_cpuid_entry2]) -> bool {
    let vendor =
        supported.iter().find(|e| e.function == 0).map(|e| [e.ebx, e.edx, e.ecx].map(u32::to_le_bytes));
    vendor.is_some_and(|v| matches!(v.as_flattened(), b"AuthenticAMD" | b"HygonGenuine"))
}

/// How many bits an APIC id needs to number `cpus` cores.
fn id_bits(cpus: u32) -> u32 {
    cpus.max(1).next_power_of_two().trailing_zeros()
}

fn adjust(entry: &mut kvm_cpuid_entry2, spec: &CpuidSpec, index: u32, amd: bool) {
    let cpus = spec.cpus.max(1);
    let id_space = 1 << id_bits(cpus);
    match entry.function {
        0x1 => adjust_leaf1(entry, spec, index, id_space),
        // Intel's cache leaves: bits 14 to 25 say how many ids share the cache, 26 to 31 how many cores there are.
        0x4 if entry.eax & 0x1f != 0 => {
            let sharing = shared_by(entry.eax, id_space);
            entry.eax = (entry.eax & 0x3fff) | (sharing - 1) << 14 | (id_space.min(64) - 1) << 26;
        }
        // MONITOR and MWAIT: their feature bit is off.
        0x5 => clear(entry),
        // Performance counters, architectural and AMD's: none are given.
        0xa | 0x23 | 0x8000_0022 => clear(entry),
        HYPERVISOR if spec.tsc_khz.is_some() => entry.eax = entry.eax.max(HYPERVISOR_TIMING),
        0x8000_0001 => {
            entry.ecx &= !(amd_features::ECX_SVM | amd_features::ECX_PERFCTR_CORE);
            set(&mut entry.ecx, amd_features::ECX_CMP_LEGACY, amd && cpus > 1);
        }
        // AMD: bits 0 to 7 are the cores less one, 12 to 15 the bits of an id that number them.
        0x8000_0008 if amd => entry.ecx = (entry.ecx & !0xf0ff) | (cpus - 1) | id_bits(cpus) << 12,
        // SVM's own leaf.
        0x8000_000a => clear(entry),
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let sharing = shared_by(entry.eax, id_space);
            entry.eax = (entry.eax & !(0xfff << 14)) | (sharing - 1) << 14;
        }
        // AMD: APIC id; core id and threads of a core less one; node 0 of one.
        0x8000_001e if amd => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (index, index & 0xff, 0, 0);
        }
        _ => {}
    }
}

fn adjust_leaf1(entry: &mut kvm_cpuid_entry2, spec: &CpuidSpec, index: u32, id_space: u32) {
    entry.ebx = (entry.ebx & 0xffff) | (id_space & 0xff) << 16 | (index & 0xff) << 24;
    entry.ecx &= !(leaf1::ECX_MONITOR | leaf1::ECX_VMX | leaf1::ECX_PDCM);
    // KVM's local APIC has both; it reports the deadline timer as a capability only.
    entry.ecx |= leaf1::ECX_HYPERVISOR | leaf1::ECX_X2APIC;
    set(&mut entry.ecx, leaf1::ECX_TSC_DEADLINE, spec.tsc_deadline);
    set(&mut entry.edx, leaf1::EDX_HTT, spec.cpus > 1);
}

/// How many APIC ids share the cache that a cache leaf's EAX describes: from level 3 on all, below only one.
fn shared_by(eax: u32, id_space: u32) -> u32 {
    if eax >> 5 & 7 >= 3 { id_space } else { 1 }
}

/// Extended topology: a level of threads (one a core), one of cores, and an empty one that ends the list.
fn topology_leaves(function: u32, cpus: u32, index: u32) -> [kvm_cpuid_entry2; 3] {
    const THREADS: u32 = 1 << 8;
    const CORES: u32 = 2 << 8;
    let level = |n: u32, bits: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
        function,
        index: n,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: bits,
        ebx: count,
        ecx: n | kind,
        edx: index,
        ..Default::default()
    };
    [level(0, 0, 1, THREADS), level(1, id_bits(cpus), cpus, CORES), level(2, 0, 0, 0)]
}

fn clear(entry: &mut kvm_cpuid_entry2) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
}

fn set(register: &mut u32, bit: u32, on: bool) {
    if on { *register |= bit } else { *register &= !bit }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn vendor(name: &[u8; 12]) -> kvm_cpuid_entry2 {
        let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
        leaf(0, 0, [0x1f, word(0), word(8), word(4)])
    }

    fn host(name: &[u8; 12]) -> Vec<kvm_cpuid_entry2> {
        vec![
            vendor(name),
            leaf(1, 0, [0x806ea, 0x0710_0800, leaf1::ECX_VMX | leaf1::ECX_MONITOR | 1, leaf1::EDX_HTT | 1]),
            leaf(4, 0, [0x1c00_4121, 1, 2, 3]),
            leaf(4, 3, [0x1c03_c163, 1, 2, 3]),
            leaf(4, 4, [0, 0, 0, 0]),
            leaf(0xa, 0, [0x0730_0404, 0, 0, 0x603]),
            leaf(0xb, 0, [1, 2, 0x100, 7]),
            leaf(0xb, 1, [4, 12, 0x201, 7]),
            leaf(HYPERVISOR, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
            leaf(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
            leaf(0x8000_0001, 0, [0, 0, amd_features::ECX_SVM | 1, 0]),
            leaf(0x8000_0008, 0, [0x3028, 0, 0x7007, 0]),
            leaf(0x8000_001d, 3, [0x0003_c163, 0, 0, 0]),
            leaf(0x8000_001e, 0, [7, 0x107, 0x100, 0]),
        ]
    }

    fn spec(cpus: u32) -> CpuidSpec {
        CpuidSpec { cpus, tsc_khz: Some(2_400_000), tsc_deadline: true }
    }

    fn get(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
        let mut found = entries.iter().filter(|e| (e.function, e.index) == (function, index));
        let e = found.next().unwrap();
        assert!(found.next().is_none(), "{function:#x} is there twice");
        [e.eax, e.ebx, e.ecx, e.edx]
    }

    #[test]
    fn an_intel_topology_is_one_package_of_cores() {
        for (cpus, bits, space) in [(1, 0, 1), (2, 1, 2), (3, 2, 4), (64, 6, 64)] {
            for index in [0, cpus - 1] {
                let entries = build(&host(b"GenuineIntel"), &spec(cpus), index);
                let [_, ebx, ecx, edx] = get(&entries, 1, 0);
                assert_eq!((ebx >> 24, ebx >> 16 & 0xff, ebx & 0xffff), (index, space, 0x0800));
                assert_eq!(edx & leaf1::EDX_HTT != 0, cpus > 1);
                assert_eq!(ecx, 1 | leaf1::ECX_X2APIC | leaf1::ECX_TSC_DEADLINE | leaf1::ECX_HYPERVISOR);
                assert_eq!(get(&entries, 4, 0)[0], 0x121 | (space - 1) << 26);
                assert_eq!(get(&entries, 4, 3)[0], 0x163 | (space - 1) << 14 | (space - 1) << 26);
                assert_eq!(get(&entries, 4, 4), [0; 4]);
                assert_eq!(get(&entries, 0xb, 0), [0, 1, 0x100, index]);
                assert_eq!(get(&entries, 0xb, 1), [bits, cpus, 0x201, index]);
                assert_eq!(get(&entries, 0xb, 2), [0, 0, 2, index]);
                assert!(!entries.iter().any(|e| e.function == 0x1f));
            }
        }
    }

    #[test]
    fn an_amd_topology_is_one_package_of_cores() {
        for (cpus, bits, space) in [(1, 0, 1), (2, 1, 2), (3, 2, 4), (64, 6, 64)] {
            let index = cpus - 1;
            let entries = build(&host(b"AuthenticAMD"), &spec(cpus), index);
            assert_eq!(get(&entries, 0x8000_0008, 0)[2], (cpus - 1) | bits << 12);
            assert_eq!(get(&entries, 0x8000_001e, 0), [index, index, 0, 0]);
            assert_eq!(get(&entries, 0x8000_001d, 3)[0], 0x163 | (space - 1) << 14);
            let cmp_legacy = get(&entries, 0x8000_0001, 0)[2];
            assert_eq!(cmp_legacy, if cpus > 1 { 1 | amd_features::ECX_CMP_LEGACY } else { 1 });
        }
    }

    #[test]
    fn counters_and_nested_virtualisation_are_hidden_and_the_clock_told() {
        let entries = build(&host(b"GenuineIntel"), &spec(2), 0);
        assert_eq!(get(&entries, 0xa, 0), [0; 4]);
        assert_eq!(get(&entries, 0x8000_0001, 0)[2], 1);
        assert_eq!(get(&entries, HYPERVISOR, 0)[0], HYPERVISOR_TIMING);
        assert_eq!(get(&entries, HYPERVISOR_TIMING, 0), [2_400_000, 1_000_000, 0, 0]);
        assert_eq!(get(&entries, 0x4000_0001, 0)[0], 0x0100_7efb);

        let without = CpuidSpec { tsc_khz: None, tsc_deadline: false, ..spec(2) };
        let entries = build(&host(b"GenuineIntel"), &without, 0);
        assert_eq!(get(&entries, 1, 0)[2] & leaf1::ECX_TSC_DEADLINE, 0);
        assert_eq!(get(&entries, HYPERVISOR, 0)[0], 0x4000_0001);
        assert!(!entries.iter().any(|e| e.function == HYPERVISOR_TIMING));
    }

    #[test]
    fn physical_address_bits_have_a_default_and_bounds() {
        assert_eq!(phys_bits(&host(b"GenuineIntel")), 40);
        assert_eq!(phys_bits(&[]), 36);
        assert_eq!(phys_bits(&[leaf(0x8000_0008, 0, [0xff, 0, 0, 0])]), 52);
    }
}
