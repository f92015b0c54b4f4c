//! Model-specific registers: what they hold when a guest starts.
//!
//! Indexes: Intel SDM volume 4; AMD APM volume 2, appendix A; Linux, Documentation/virt/kvm/x86/msr.rst.

use std::ops::RangeInclusive;

use kvm_bindings::kvm_msr_entry;

const TSC: u32 = 0x10;
const TSC_ADJUST: u32 = 0x3b;
const SPEC_CTRL: u32 = 0x48;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
const MISC_ENABLE: u32 = 0x1a0;
const PAT: u32 = 0x277;
const MTRR_DEF_TYPE: u32 = 0x2ff;
const TSC_DEADLINE: u32 = 0x6e0;
const XSS: u32 = 0xda0;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SYSCALL_MASK: u32 = 0xc000_0084;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;
/// Wall clock and system time as the first guests of KVM found them.
const KVM_WALL_CLOCK: u32 = 0x11;
const KVM_SYSTEM_TIME: u32 = 0x12;
/// KVM's own: wall clock, system time, async page faults, steal time, EOI, …
const KVM_FIRST: u32 = 0x4b56_4d00;
const KVM_LAST: u32 = 0x4b56_4dff;
const KVM_POLL_CONTROL: u32 = 0x4b56_4d05;

const MISC_ENABLE_FAST_STRING: u64 = 1;
/// Power-on value: write-back, write-through, uncached minus, uncached, twice.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// MTRRs on; everything write-back unless one says otherwise.
const MTRR_ON_WRITE_BACK: u64 = 1 << 11 | 6;

/// The MSRs to set (KVM_SET_MSRS) in every vCPU before a guest starts *or is rebooted*, of those that the host
/// lists (KVM_GET_MSR_INDEX_LIST). The last may be refused by KVM without harm: the MTRRs' default.
///
/// KVM's own matter most at a reboot: with their addresses left in place KVM would write clocks into
/// the memory of the new kernel.
#[must_use]
pub fn boot(listed: &[u32]) -> Vec<kvm_msr_entry> {
    const ZERO: [u32; 14] = [
        SYSENTER_CS,
        SYSENTER_ESP,
        SYSENTER_EIP,
        STAR,
        LSTAR,
        CSTAR,
        SYSCALL_MASK,
        KERNEL_GS_BASE,
        TSC_AUX,
        TSC_DEADLINE,
        SPEC_CTRL,
        XSS,
        KVM_WALL_CLOCK,
        KVM_SYSTEM_TIME,
    ];
    let with_value = [
        (MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        (PAT, PAT_RESET),
        // Zero in a new vCPU too; a guest that wrote the TSC has moved it.
        (TSC_ADJUST, 0),
        (TSC, 0),
    ];
    let kvms = listed.iter().filter(|i| (KVM_FIRST..=KVM_LAST).contains(*i));
    let kvms = kvms.map(|&index| (index, u64::from(index == KVM_POLL_CONTROL)));
    let entry = |(index, data)| kvm_msr_entry { index, data, ..Default::default() };
    ZERO.into_iter()
        .map(|index| (index, 0))
        .chain(with_value)
        .filter(|(index, _)| listed.contains(index))
        .chain(kvms)
        .chain([(MTRR_DEF_TYPE, MTRR_ON_WRITE_BACK)])
        .map(entry)
        .collect()
}

/// The MSRs that make up a vCPU's state, of those that the host lists (KVM_GET_MSR_INDEX_LIST), in the order in which they
/// are to be set again. The TSC is not among them: it goes on while nobody looks.
///
/// KVM lists no MTRRs, and has them. Nested virtualisation and performance counters are hidden from guests.
#[must_use]
pub fn kept(listed: &[u32]) -> Vec<u32> {
    const VARIABLE_MTRRS: RangeInclusive<u32> = 0x200..=0x20f;
    const FIXED_MTRRS: [u32; 11] =
        [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
    let hidden = |index: &u32| HIDDEN.iter().any(|range| range.contains(index));
    let mut kept: Vec<u32> = listed.iter().copied().filter(|index| !hidden(index)).collect();
    kept.extend(VARIABLE_MTRRS.chain(FIXED_MTRRS).chain([MTRR_DEF_TYPE]));
    kept.sort_unstable();
    kept.dedup();
    // Armed against a TSC that is right already, and in the mode that the local APIC has then.
    let (last, mut kept): (Vec<u32>, Vec<u32>) = kept.into_iter().partition(|index| *index == TSC_DEADLINE);
    kept.extend(last);
    kept
}

/// What guests cannot see, or what is kept elsewhere.
const HIDDEN: [RangeInclusive<u32>; 8] = [
    TSC..=TSC,
    // The oldest names of KVM's clocks; the new ones hold the same.
    KVM_WALL_CLOCK..=KVM_SYSTEM_TIME,
    // Performance counters: Intel's general ones and their selectors, the fixed and the global ones, AMD's old and new ones.
    0xc1..=0xc8,
    0x186..=0x18d,
    0x309..=0x3f1,
    0xc001_0000..=0xc001_0007,
    0xc001_0200..=0xc001_020b,
    // VMX.
    0x480..=0x491,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_host_lists_is_set_before_a_boot() {
        let indexes = |listed: &[u32]| boot(listed).iter().map(|e| e.index).collect::<Vec<_>>();
        assert_eq!(indexes(&[]), [MTRR_DEF_TYPE]);
        assert_eq!(indexes(&[STAR, 0x1234, TSC]), [STAR, TSC, MTRR_DEF_TYPE]);
    }

    #[test]
    fn the_deadline_is_set_last_and_what_is_hidden_not_at_all() {
        let kept = kept(&[TSC_DEADLINE, TSC, 0x480, 0x38f, STAR, STAR]);
        assert_eq!(kept.last(), Some(&TSC_DEADLINE));
        assert_eq!(kept.iter().filter(|index| **index == STAR).count(), 1);
        assert!(kept.contains(&MTRR_DEF_TYPE));
        assert!(!kept.iter().any(|index| [TSC, 0x480, 0x38f].contains(index)));
    }

    #[test]
    fn a_reboot_takes_kvms_pointers_into_memory_away() {
        let entries = boot(&[0x4b56_4d00, 0x4b56_4d01, 0x4b56_4d03, KVM_POLL_CONTROL]);
        for entry in entries.iter().filter(|e| (KVM_FIRST..=KVM_LAST).contains(&e.index)) {
            assert_eq!(entry.data, u64::from(entry.index == KVM_POLL_CONTROL));
        }
        assert_eq!(entries.len(), 5);
    }
}
