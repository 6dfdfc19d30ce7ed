// From QEMU's reset of a virt machine to Rust: EL1 or EL2, all off, the device tree at the start of memory.

.section .text.boot, "ax"
.global start
start:
    mrs x19, cntvct_el0
    msr daifset, #15
    mrs x0, currentel
    cmp x0, #(2 << 2)
    b.ne 3f
    mov x0, #(1 << 31)                  // from a hypervisor's level to a kernel's, in 64 bits, ...
    msr hcr_el2, x0
    mov x0, #0x33ff                     // ... which may use the FPU ...
    msr cptr_el2, x0
    mov x0, #3                          // ... and the counters
    msr cnthctl_el2, x0
    msr cntvoff_el2, xzr
    movz x0, #0x0800                    // with the MMU off, as after a reset
    movk x0, #0x30d0, lsl #16
    msr sctlr_el1, x0
    mov x0, #0x3c5
    msr spsr_el2, x0
    adr x0, 3f
    msr elr_el2, x0
    eret
3:
    mov x0, #(3 << 20)                  // the compiler uses the registers of the FPU
    msr cpacr_el1, x0

    // All memory below 512 GiB onto itself, in blocks of 1 GiB, the first for devices: without the MMU, no access may be unaligned.
    adrp x0, boot_root
    adrp x1, boot_blocks
    orr x2, x1, #3
    str x2, [x0]
    movz x2, #0x405                     // accessed, block, attributes 1 (device)
    str x2, [x1], #8
    movz x2, #0x701                     // accessed, inner shareable, block, attributes 0 (memory)
    movk x2, #0x4000, lsl #16
    mov x3, #511
    mov x4, #0x40000000
1:  str x2, [x1], #8
    add x2, x2, x4
    subs x3, x3, #1
    b.ne 1b

    mov x1, #0x00ff                     // attributes 0: write-back; 1: device
    msr mair_el1, x1
    mrs x1, id_aa64mmfr0_el1            // as many physical bits as there are, 48 at most
    and x1, x1, #15
    mov x2, #5
    cmp x1, x2
    csel x1, x1, x2, lo
    movz x2, #0x3510                    // 48 bits of lower half, write-back tables, inner shareable, 4 KiB pages
    movk x2, #0x0080, lsl #16           // no upper half
    orr x2, x2, x1, lsl #32
    msr tcr_el1, x2
    msr ttbr0_el1, x0
    dsb sy
    tlbi vmalle1
    dsb sy
    isb
    mrs x0, sctlr_el1
    mov x1, #0x1005                     // MMU, data and instruction caches
    orr x0, x0, x1
    bic x0, x0, #2                      // alignment is not checked
    msr sctlr_el1, x0
    isb

    // Exceptions have a stack of their own: SP_EL1; the kernel runs on SP_EL0.
    msr spsel, #1
    adrp x0, exception_stack_top
    mov sp, x0
    msr spsel, #0
    adrp x0, boot_stack_top
    mov sp, x0
    adrp x0, entry_ticks
    str x19, [x0, :lo12:entry_ticks]
    mov x29, #0                         // where a backtrace ends
    mov x30, #0
    mov x0, #0x40000000
    mov x1, #0
    bl kernel_main
2:  wfi
    b 2b

.section .data.boot, "aw"
    .balign 8
.global entry_ticks
entry_ticks: .quad 0

.section .bss.boot, "aw", @nobits
    .balign 4096
boot_root: .skip 4096
boot_blocks: .skip 4096
.global boot_stack_guard
boot_stack_guard: .skip 4096
    .skip 64 * 1024
.global boot_stack_top
boot_stack_top:
    .skip 16 * 1024
exception_stack_top:
    .skip 4096
