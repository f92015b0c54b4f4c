//! What ring 3 can do about its processor: ask ring 0, hook interrupts, read the time stamp.

use core::arch::{asm, x86_64::__cpuid_count};
use core::sync::atomic::{AtomicU64, Ordering};

/// How often each interrupt vector arrived, on any processor.
#[unsafe(no_mangle)]
static interrupt_counts: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];

/// The selector of the first processor's task state; each further one's is 16 more.
pub const FIRST_TASK: u16 = 0x30;

unsafe extern "C" {
    static mut gdt: [u64; 6 + 128];
    static mut idt: [[u64; 2]; 256];
    static breakpoint: u8;
    static fault_stubs: u8;
    static interrupt_stubs: u8;
    static triple_fault: u8;
}

/// Ask ring 0, by int3. The numbers are those of the dispatch in `boot.rs`.
fn ask(what: u64, first: u64, second: u64) -> u64 {
    let answer;
    // SAFETY: ring 0 changes only what is named here; what it does to the machine is what the callers want.
    unsafe {
        asm!("int3", inout("rax") what => answer, inout("rdi") first => _, inout("rsi") second => _,
             out("rcx") _, out("rdx") _);
    }
    answer
}

/// Write a byte to an I/O port.
pub fn out8(port: u16, value: u8) {
    ask(0, port.into(), value.into());
}

/// Write two bytes to an I/O port.
pub fn out16(port: u16, value: u16) {
    ask(1, port.into(), value.into());
}

/// Write four bytes to an I/O port.
pub fn out32(port: u16, value: u32) {
    ask(2, port.into(), value.into());
}

/// Read a byte from an I/O port.
pub fn in8(port: u16) -> u8 {
    ask(3, port.into(), 0) as u8
}

/// Read two bytes from an I/O port.
pub fn in16(port: u16) -> u16 {
    ask(4, port.into(), 0) as u16
}

/// Read four bytes from an I/O port.
pub fn in32(port: u16) -> u32 {
    ask(5, port.into(), 0) as u32
}

/// Write bytes to the first serial port, one after the other.
pub fn out_serial(bytes: &[u8]) {
    ask(6, bytes.as_ptr() as u64, bytes.len() as u64);
}

/// Halt until an interrupt has been taken. Safe against losing one only with interrupts off before.
pub fn wait() {
    ask(7, 0, 0);
}

/// Read a model-specific register.
pub fn read_msr(msr: u32) -> u64 {
    ask(8, msr.into(), 0)
}

/// Write a model-specific register.
pub fn write_msr(msr: u32, value: u64) {
    ask(9, msr.into(), value);
}

/// Run a piece of assembly, ending with `ret`, in ring 0.
///
/// # Safety
/// It must change no register but rax, rcx, rdx, rdi and rsi, and leave the stack as it was.
pub unsafe fn in_ring0(code: unsafe extern "C" fn()) {
    ask(10, code as usize as u64, 0);
}

/// Allow interrupts in ring 3.
pub fn enable_interrupts() {
    ask(11, 0, 0);
}

/// Hold interrupts back; [`wait`] still takes them.
pub fn disable_interrupts() {
    ask(12, 0, 0);
}

/// Shut the processor down by a fault that cannot be handled.
pub fn shut_down() -> ! {
    // SAFETY: it never comes back.
    unsafe { in_ring0(core::mem::transmute::<*const u8, unsafe extern "C" fn()>(&raw const triple_fault)) };
    hang()
}

/// Do nothing, for ever.
pub fn hang() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// How often this interrupt vector arrived.
pub fn interrupts(vector: u8) -> u64 {
    interrupt_counts[usize::from(vector)].load(Ordering::SeqCst)
}

/// CPUID leaf `leaf`, sub-leaf `sub`: eax, ebx, ecx, edx.
pub fn cpuid(leaf: u32, sub: u32) -> [u32; 4] {
    let r = __cpuid_count(leaf, sub);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// The time stamp counter.
pub fn ticks() -> u64 {
    // SAFETY: every x86_64 processor has it, and nothing forbids it in ring 3.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Fill in the interrupt table. `int3` and nothing else may be used from ring 3.
pub(crate) fn init() {
    let table = &raw mut idt;
    for vector in 0..256_u64 {
        let at = match vector {
            3 => &raw const breakpoint as u64,
            0..32 => &raw const fault_stubs as u64 + 16 * vector,
            _ => &raw const interrupt_stubs as u64 + 16 * (vector - 32),
        };
        let ring = if vector == 3 { 3 << 45 } else { 0 };
        // An interrupt gate to 0x08:at, on the task's ring 0 stack.
        let low = at & 0xffff | 0x08 << 16 | 0x8e << 40 | ring | (at >> 16 & 0xffff) << 48;
        // SAFETY: the table is ours; the processor reads an entry when that vector arrives, and none has.
        unsafe { (*table)[vector as usize] = [low, at >> 32] };
    }
}

/// Write the task state and its descriptor for processor `index` (1 and up) with this ring 0 stack.
/// Returns the selector.
pub(crate) fn make_task(index: u16, stack_top: u64) -> u16 {
    let task = crate::memory::pages(1) as *mut u32;
    let at = task as u64;
    // SAFETY: a page of our own; the descriptor slot belongs to a processor that is not running yet.
    unsafe {
        task.add(1).cast::<u64>().write_unaligned(stack_top);
        task.cast::<u16>().add(51).write(104);
        let slot = 6 + 2 * usize::from(index);
        (&raw mut gdt)
            .cast::<u64>()
            .add(slot)
            .write(0x67 | (at & 0xff_ffff) << 16 | 0x89 << 40 | (at >> 24 & 0xff) << 56);
        (&raw mut gdt).cast::<u64>().add(slot + 1).write(at >> 32);
    }
    FIRST_TASK + 16 * index
}
