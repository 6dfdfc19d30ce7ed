# Entry from a multiboot loader, and the way into the kernel's own setup code in real mode.
# Everything here lies below 640 KiB, out of the way of kernel and initramfs.

	.section .multiboot, "a"
	.align 4
	.long 0x1BADB002, 0x00000003, -(0x1BADB002 + 0x00000003)	# modules on pages, memory map

	.section .high, "aw"		# modules are put behind the highest segment: above the first MiB
	.long 0

	.text
	.code32
	.global _start, narrow, real, real_segment
_start:
	cli
	mov $stack_top, %esp
	push %ebx
	push %eax
	call verify_and_place		# returns the real-mode segment of the kernel's setup code
	mov %ax, real_segment
	lgdt gdt
	lidt real_vectors
	ljmp $0x08, $narrow_offset

# void blocks_long(state, bytes, count, high): of poly1305.c. Interrupts are off all the time; paging is on only here.
	.global blocks_long
blocks_long:
	push %ebp
	push %ebx
	push %esi
	push %edi
	call make_tables
	mov 20(%esp), %edi
	mov 24(%esp), %esi
	mov 32(%esp), %ebx
	lgdt gdt
	mov %cr4, %eax
	or $0x20, %eax			# PAE
	mov %eax, %cr4
	mov $tables, %eax
	mov %eax, %cr3
	mov $0xc0000080, %ecx		# EFER
	rdmsr
	or $0x100, %eax			# LME
	wrmsr
	mov 28(%esp), %ecx
	mov %cr0, %eax
	or $0x80000000, %eax		# PG
	mov %eax, %cr0
	ljmp $0x18, $long
	.code64
long:
	mov %esp, %esp			# the upper halves of all are not defined
	mov %edi, %edi
	mov %esi, %esi
	mov %ebx, %ebx
#include "poly1305_long.h"
	mov $0x20, %eax
	push %rax
	mov $not_long, %eax
	push %rax
	lretq
	.code32
not_long:
	mov %cr0, %eax
	and $0x7fffffff, %eax
	mov %eax, %cr0
	mov $0xc0000080, %ecx
	rdmsr
	and $0xfffffeff, %eax
	wrmsr
	mov %cr4, %eax
	and $0xffffffdf, %eax
	mov %eax, %cr4
	pop %edi
	pop %esi
	pop %ebx
	pop %ebp
	ret

	.code16
narrow:
	mov $0x10, %ax
	mov %ax, %ds
	mov %ax, %es
	mov %ax, %fs
	mov %ax, %gs
	mov %ax, %ss
	mov %cr0, %eax
	and $0x7ffffffe, %eax
	mov %eax, %cr0
	ljmp $0x2000, $real_offset
real:
	mov $0x2000, %ax
	mov %ax, %ds
	mov segment_offset, %ax
	mov %ax, %ds
	mov %ax, %es
	mov %ax, %fs
	mov %ax, %gs
	mov %ax, %ss
	mov $0xe000, %sp		# as heap_end_ptr says
	add $0x20, %ax
	push %ax
	push $0
	xor %eax, %eax
	xor %ebx, %ebx
	xor %ecx, %ecx
	xor %edx, %edx
	xor %esi, %esi
	xor %edi, %edi
	xor %ebp, %ebp
	lret

	.data
	.align 8
table:
	.quad 0
	.quad 0x00009b020000ffff				# 16-bit code at 0x20000, where we are
	.quad 0x000093000000ffff					# 16-bit data
	.quad 0x00209b0000000000				# 64-bit code
	.quad 0x00cf9b000000ffff				# 32-bit code, all of memory
table_end:
gdt:
	.word table_end - table - 1
	.long table
real_vectors:
	.word 0x3ff
	.long 0
real_segment:
	.word 0

	.bss
	.align 16
	.skip 8192
stack_top:
