# From QEMU's reset of a virt machine without firmware to Rust: machine mode makes itself small, and the kernel runs in supervisor mode.
# a0: number of the hart; a1: the device tree.

.section .text.boot, "ax"
.global start
start:
    rdtime s0
    csrw mie, zero
    csrw satp, zero
    bnez a0, 2f                         # one hart is enough

    la t0, machine_ids
    csrr t1, mvendorid
    sd t1, 0(t0)
    csrr t1, marchid
    sd t1, 8(t0)
    csrr t1, mimpid
    sd t1, 16(t0)
    csrr t1, misa
    sd t1, 24(t0)

    li t0, -1                           # supervisor mode may have all memory, ...
    csrw pmpaddr0, t0
    li t0, 0x1f
    csrw pmpcfg0, t0
    li t0, 0xb3ff                       # ... handles its own exceptions (not a call of machine mode's) ...
    csrw medeleg, t0
    li t0, 0x222                        # ... and interrupts,
    csrw mideleg, t0
    li t0, 7                            # and reads the counters.
    csrw mcounteren, t0
    la t0, 2f                           # whatever comes to machine mode nevertheless: nothing more can be done
    csrw mtvec, t0
    li t0, 0x7888                       # MPP, MPIE, MIE, FS: set below
    csrc mstatus, t0
    li t0, 0x2800                       # to supervisor mode; FPU on, for the compiler uses its registers
    csrs mstatus, t0
    la t0, 1f
    csrw mepc, t0
    mret

1:  la t0, exception_stack_top
    csrw sscratch, t0
    la sp, boot_stack_top
    la t0, entry_ticks
    sd s0, 0(t0)
    la t0, device_tree
    sd a1, 0(t0)
    mv a0, a1
    li a1, 0
    li s0, 0                            # where a backtrace ends
    li ra, 0
    call kernel_main
    .balign 4
2:  wfi
    j 2b

.section .data.boot, "aw"
    .balign 8
.global entry_ticks
entry_ticks: .quad 0
.global device_tree
device_tree: .quad 0
.global machine_ids
machine_ids: .quad 0, 0, 0, 0

.section .bss.boot, "aw", @nobits
    .balign 4096
.global boot_stack_guard
boot_stack_guard: .skip 4096
    .skip 64 * 1024
.global boot_stack_top
boot_stack_top:
    .skip 16 * 1024
exception_stack_top:
    .skip 4096
