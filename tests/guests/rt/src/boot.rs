//! From the loader's 32-bit entry to Rust code in ring 3, and the way back.
//!
//! ```text
//!   PVH entry, 32-bit ──► long mode, ring 0 ──iretq──► ring 3: all Rust code, identity-mapped
//!                              ▲   │                       │ int3: ask ring 0 (see crate::cpu)
//!                              └───┴───── iretq ◄──────────┘ fault: handler returns to `fault_in_ring3`
//!                                                            interrupt: counted, EOI, iretq
//! ```
//!
//! Ring 0 is only what is in this file, in assembly of the plainest kind: some hosts emulate ring 0, slowly and
//! without int3, SSE, fences and the like, but run ring 3 on the processor itself. Since no compiled code runs
//! in ring 0, interrupts may push on its stack without a red zone being in the way.
//!
//! The page tables are data, not code: 4 GiB of 2 MiB pages that ring 3 may write, memory and MMIO alike.

use core::arch::global_asm;

// Entry, tables and the stacks. GDT: 0x08 code, 0x10 data, 0x18 and 0x20 the same for ring 3, 0x28 32-bit code for
// processors that come up, then one task state descriptor (16 bytes) for each of up to 64 processors.
global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18            // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start

    .section .data.tables, "aw"
    .balign 4096
    .globl page_map
page_map:
    .quad page_directories + 7
    .fill 511, 8, 0
    .globl page_directories
page_directories:
    .quad pages + 0x0007, pages + 0x1007, pages + 0x2007, pages + 0x3007
    .fill 508, 8, 0
pages:
    .set at, 0
    .rept 2048
    .quad at + 0x87           // present, writable, ring 3, 2 MiB
    .set at, at + 0x200000
    .endr
    .globl gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cff3000000ffff
    .quad 0x00affb000000ffff
    .quad 0x00cf9b000000ffff
    .fill 128, 8, 0
gdt_end:
    .globl gdt_pointer
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
    .balign 16
    .globl idt
idt:
    .fill 512, 8, 0
    .globl idt_pointer
idt_pointer:
    .word 4095
    .quad idt
    .balign 16
    .globl boot_task
boot_task:
    .long 0
    .quad ring0_stack_top
    .fill 90, 1, 0
    .word 104

    .section .stacks, "aw", @nobits
    .balign 16
    .skip 8192
ring0_stack_top:
    .skip 0x40000
ring3_stack_top:

    .section .boot, "ax"
    .globl pvh_start
    .code32
pvh_start:
    cli
    cld
    mov eax, 0x620            // PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset page_map
    mov cr3, eax
    mov ecx, 0xc0000080       // EFER: long mode enable
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, 0x80000033       // PG, NE, ET, MP, PE
    mov cr0, eax
    lgdt [gdt_pointer]
    .byte 0xea                // far jump, 0x08:long_start
    .long long_start
    .word 0x08
    .code64
long_start:
    mov eax, 0x10
    mov ss, eax
    mov eax, offset boot_task // its descriptor: limit 103, available 64-bit task, base below 16 MiB
    shl rax, 16
    mov rcx, 0x0000890000000067
    or rax, rcx
    mov [gdt + 0x30], rax
    mov eax, 0x30
    ltr ax
    lidt [idt_pointer]
    mov rsp, offset ring0_stack_top
    mov rdi, rbx
    mov rsi, offset ring3_stack_top - 8
    mov rdx, offset start
    jmp to_ring3

    // rdi: the argument, rsi: stack, rdx: where to.
    .globl to_ring3
to_ring3:
    mov eax, 0x1b
    mov ds, eax
    mov es, eax
    xor ebp, ebp
    push 0x1b
    push rsi
    push 2
    push 0x23
    push rdx
    iretq
"#
);

// What ring 3 asks for by int3: rax chooses (see crate::cpu), rdi, rsi, rdx are the arguments, rax the answer.
// rcx and rdx are lost.
global_asm!(
    r#"
    .section .boot, "ax"
    .balign 16
    .globl breakpoint
breakpoint:
    cmp eax, 6
    je 6f
    test eax, eax
    je 10f
    cmp eax, 1
    je 11f
    cmp eax, 2
    je 12f
    cmp eax, 3
    je 13f
    cmp eax, 4
    je 14f
    cmp eax, 5
    je 15f
    cmp eax, 7
    je 17f
    cmp eax, 8
    je 18f
    cmp eax, 9
    je 19f
    cmp eax, 10
    je 20f
    cmp eax, 11
    je 21f
    cmp eax, 12
    je 22f
    iretq
6:  mov edx, 0x3f8            // rdi: bytes, rsi: how many, to the serial port
1:  test rsi, rsi
    je 2f
    mov al, [rdi]
    out dx, al
    inc rdi
    dec rsi
    jmp 1b
2:  iretq
10: mov edx, edi
    mov eax, esi
    out dx, al
    iretq
11: mov edx, edi
    mov eax, esi
    out dx, ax
    iretq
12: mov edx, edi
    mov eax, esi
    out dx, eax
    iretq
13: mov edx, edi
    xor eax, eax
    in al, dx
    iretq
14: mov edx, edi
    xor eax, eax
    in ax, dx
    iretq
15: mov edx, edi
    in eax, dx
    iretq
17: sti                       // wait for an interrupt, and take it before the return
    hlt
    cli
    iretq
18: mov ecx, edi
    rdmsr
    shl rdx, 32
    or rax, rdx
    iretq
19: mov ecx, edi
    mov eax, esi
    mov rdx, rsi
    shr rdx, 32
    wrmsr
    iretq
20: call rdi                  // run a piece of assembly in ring 0
    iretq
21: or dword ptr [rsp + 16], 0x200
    iretq
22: and dword ptr [rsp + 16], 0xfffffdff
    iretq
"#
);

// Faults. Those from ring 3 go back there, to `fault_in_ring3(vector, error code, rip, cr2)`. One in ring 0 is a
// mistake in this file, or of the host: '!' and its vector as a letter on the serial port, then a triple fault.
global_asm!(
    r#"
    .section .boot, "ax"
    .balign 16
    .globl fault_stubs
fault_stubs:
    .set vector, 0
    .rept 32
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    push 0
    .endif
    push vector
    jmp fault
    .set vector, vector + 1
    .endr
fault:
    test byte ptr [rsp + 24], 3
    je 1f
    mov rdi, [rsp]
    mov rsi, [rsp + 8]
    mov rdx, [rsp + 16]
    mov rcx, cr2
    add rsp, 16
    mov rax, offset fault_in_ring3
    mov [rsp], rax
    mov rax, [rsp + 24]       // realign the stack as after a call, beyond a red zone
    sub rax, 256
    and rax, -16
    sub rax, 8
    mov [rsp + 24], rax
    iretq
1:  mov edx, 0x3f8
    mov al, '!'
    out dx, al
    mov rax, [rsp]
    add al, 'A'
    out dx, al
    .globl triple_fault
triple_fault:
    push 0
    push 0
    lidt [rsp]
    ud2

    // Interrupts 0x20 to 0xff: count, tell the local APIC, go on.
    .balign 16
    .globl interrupt_stubs
interrupt_stubs:
    .set vector, 0x20
    .rept 224
    .balign 16
    push rax
    mov eax, offset interrupt_counts + 8 * vector
    jmp interrupt
    .set vector, vector + 1
    .endr
interrupt:
    lock inc qword ptr [rax]
    mov eax, 0xfee000b0
    mov dword ptr [rax], 0
    pop rax
    iretq
"#
);

// A processor that comes up: real mode at the page that the start-up interrupt named, then as above. The piece from
// `ap_code` to `ap_code_end` is copied there, below 1 MiB; the mailbox tells each its task, stack and purpose.
global_asm!(
    r#"
    .section .boot, "ax"
    .balign 16
    .globl ap_code
    .code16
ap_code:
    jmp 1f
    .balign 4
    .word gdt_end - gdt - 1   // 4 bytes in
    .long gdt
1:  cli
    cld
    mov ax, cs
    mov ds, ax
    lgdt [4]
    mov eax, cr0
    or eax, 1
    mov cr0, eax
    .byte 0x66, 0xea          // far jump, 0x28:ap_start32
    .long ap_start32
    .word 0x28
    .globl ap_code_end
ap_code_end:

    .code32
ap_start32:
    mov eax, 0x10
    mov ds, eax
    mov ss, eax
    mov eax, 0x620
    mov cr4, eax
    mov eax, offset page_map
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, 0x80000033
    mov cr0, eax
    .byte 0xea
    .long ap_long_start
    .word 0x08
    .code64
ap_long_start:
    mov eax, 0x10
    mov ss, eax
    mov rbx, offset ap_mailbox
    mov eax, [rbx]
    ltr ax
    lidt [idt_pointer]
    mov rsp, [rbx + 8]
    mov rsi, [rbx + 16]
    mov rdi, [rbx + 24]
    mov rdx, offset ap_start
    jmp to_ring3
"#
);
