# From the loader's 32-bit protected mode to Rust in 64-bit mode.
#
# PVH (QEMU -kernel, Xen): EBX = start_info. Multiboot 2 (GRUB): EAX = 0x36d76289, EBX = its information. Which of the two it was,
# multiboot2.rs and pvh.rs find out: firmware such as qboot enters by PVH with an EAX of its own.

.section .note.pvh, "a", @note
    .align 4
    .long 4, 8, 18                      # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad start32

.section .multiboot2, "a"
    .align 8
multiboot2:
    .long 0xe85250d6, 0, multiboot2_end - multiboot2, -(0xe85250d6 + (multiboot2_end - multiboot2))
    .word 0, 0
    .long 8                             # the end tag: nothing is asked for
multiboot2_end:

.section .text.boot, "ax"
.code32
.global start32
start32:
    cli
    cld
    mov %eax, %edi                      # arguments of kernel_main: the loader's EAX and EBX, and the time
    mov %ebx, %esi
    rdtsc
    mov %eax, entry_tsc
    mov %edx, entry_tsc + 4
    mov $boot_stack_top, %esp

    # The first 4 GiB onto themselves, in pages of 2 MiB; memory/paging builds the real tables.
    movl $boot_pdpt + 3, boot_pml4
    mov $boot_pd, %eax
    mov $boot_pdpt, %ecx
1:  lea 3(%eax), %edx
    mov %edx, (%ecx)
    add $8, %ecx
    add $4096, %eax
    cmp $boot_pd + 4 * 4096, %eax
    jne 1b
    mov $0x83, %eax                     # present, writable, large
    mov $boot_pd, %ecx
2:  mov %eax, (%ecx)
    add $8, %ecx
    add $0x200000, %eax
    jnc 2b

    mov $boot_pml4, %eax
    mov %eax, %cr3
    mov %cr4, %eax
    or $0x620, %eax                     # PAE; OSFXSR and OSXMMEXCPT, because the compiler uses SSE
    mov %eax, %cr4
    mov $0xc0000080, %ecx               # EFER: long mode, no-execute
    rdmsr
    or $0x900, %eax
    wrmsr
    mov %cr0, %eax
    and $0xfffffffb, %eax               # no EM
    or $0x80010022, %eax                # paging, write protection, native FPU errors, MP
    mov %eax, %cr0
    lgdt boot_gdt_pointer
    ljmp $8, $start64

.code64
start64:
    mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    mov $boot_stack_top, %rsp
    mov %edi, %edi                      # the upper halves are not defined after the switch of modes
    mov %esi, %esi
    xor %ebp, %ebp                      # where a backtrace ends
    call kernel_main
3:  hlt
    jmp 3b

.section .rodata.boot, "a"
    .align 8
boot_gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
boot_gdt_pointer:
    .word 23
    .long boot_gdt

.section .data.boot, "aw"
    .align 8
.global entry_tsc
entry_tsc:
    .quad 0

.section .bss.boot, "aw", @nobits
    .align 4096
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd: .skip 4 * 4096
.global boot_stack_guard
boot_stack_guard: .skip 4096
    .skip 64 * 1024
.global boot_stack_top
boot_stack_top:
