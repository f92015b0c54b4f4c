//! The ruler for start-up time: the first instruction after the loader's work leads to one byte on the serial
//! port, then the machine is switched off. No stack, no paging, no Rust code.

#![no_std]
#![no_main]

use core::panic::PanicInfo;

core::arch::global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18            // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start

    .section .boot, "ax"
    .globl pvh_start
    .code32
pvh_start:
    mov edx, 0x3f8
    mov al, 'H'
    out dx, al
    mov edx, 0x600            // the sleep control register: S5, sleep enable
    mov al, 0x34
    out dx, al
1:  cli
    hlt
    jmp 1b
    .code64
"#
);

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    loop {}
}
