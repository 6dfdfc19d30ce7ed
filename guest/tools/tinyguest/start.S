# Entry of PVH (xen/include/public/arch-x86/hvm/start_info.h): 32 bits, flat segments, no paging, EBX = where hvm_start_info lies.

	.section .note.pvh, "a", @note
	.long 4, 4, 18			# name's bytes, description's bytes, XEN_ELFNOTE_PHYS32_ENTRY
	.asciz "Xen"
	.long _start

	.text
	.code32
	.globl _start
_start:
	cli
	cld
	mov $stack_top, %esp
	lgdt gdt_register
	ljmp $0x08, $1f
1:	mov $0x10, %ax
	mov %ax, %ds
	mov %ax, %es
	mov %ax, %fs
	mov %ax, %gs
	mov %ax, %ss
	push %ebx
	call run
2:	cli
	hlt
	jmp 2b

	.section .rodata
	.align 8
gdt:	.quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdt_register:
	.word 23
	.long gdt

	.bss
	.align 16
	.skip 8192
stack_top:

	.section .note.GNU-stack, "", @progbits
