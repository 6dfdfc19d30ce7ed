# The guest of labctl doctor's KVM probe (labctl/machine/accel.py holds it assembled): from the reset vector into long mode with
# paging, 100,000 pushes and pops on a stack, CPUID, then a byte to QEMU's debug-exit port.
# It lies at 0xFFF00 of a 64 KiB ROM; the reset vector at 0xFFFF0 jumps here.
    .code16
    .org 0
start:
    cli
    lgdtl %cs:(gdtr - start + 0xff00)
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $0x08, $(0xfff00 + protected - start)
    .code32
protected:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    # page tables at 0x1000: the first 2 MiB identity mapped
    xorl %eax, %eax
    movl $0x1000, %edi
    movl $0xc00, %ecx
    cld
    rep stosl
    movl $0x2003, 0x1000
    movl $0x3003, 0x2000
    movl $0x0083, 0x3000
    movl $0x1000, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    ljmpl $0x18, $(0xfff00 + long - start)
    .code64
long:
    movl $0x4000, %esp
    movl $100000, %ebx
1:  pushq %rbx
    xorl %eax, %eax
    popq %rbx
    decl %ebx
    jnz 1b
    cpuid
    movb $0x15, %al
    outb %al, $0xf4
2:  hlt
    jmp 2b
gdtr:
    .word 31
    .long 0xfff00 + gdt - start
gdt:
    .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff, 0x00af9a000000ffff
end:
