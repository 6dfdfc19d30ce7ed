# A kernel module that fails in one way when it is loaded; for record.sh, which passes KIND and what it read from the kernel's own
# modules: MODULE_SIZE, INIT_OFFSET, VERMAGIC and the file versions.bin. No kernel headers are needed.
.macro bug_entry address, flags
.pushsection __bug_table, "aw"
1001:	.long \address - 1001b
	.long file_name - (1001b + 4)
	.word 42
	.word \flags
.popsection
.endm

.section .rodata
file_name: .asciz "drivers/faults/faults.c"

.text
.globl init_module
.type init_module, @function
init_module:
	call fault_here
	xor %eax, %eax
	ret
.size init_module, . - init_module

.globl fault_here
.type fault_here, @function
fault_here:
.if KIND == 1	# NULL pointer
	movl $0, 0x10
.elseif KIND == 2	# not canonical: general protection fault
	movabs $0xdead4ead00000000, %rax
	mov (%rax), %rbx
.elseif KIND == 3	# BUG()
1:	ud2
	bug_entry 1b, 0
.elseif KIND == 4	# WARN(): taint 9
1:	ud2
	bug_entry 1b, 0x0901
.elseif KIND == 5	# a page that nobody mapped
	movabs $0xffffc90123456000, %rax
	mov (%rax), %rbx
.elseif KIND == 6	# divide by zero
	xor %ecx, %ecx
	xor %edx, %edx
	mov $1, %eax
	div %ecx
.elseif KIND == 7	# spins, and is not preempted under preempt=none: soft lockup
1:	pause
	jmp 1b
.elseif KIND == 8	# spins with interrupts off, as long as it takes
	cli
1:	pause
	jmp 1b
.elseif KIND == 9	# triple fault: no IDT
	push $0
	push $0
	lidt (%rsp)
	int3
.endif
	ret
.size fault_here, . - fault_here

.section .modinfo, "a"
	.asciz "license=GPL"
	.asciz "depends="
	.asciz "retpoline=Y"
	.asciz "name=faults"
	.ascii "vermagic="
	.incbin "vermagic.bin"
	.byte 0
.section __versions, "a"
	.incbin "versions.bin"
.section .gnu.linkonce.this_module, "aw"
.globl __this_module
__this_module:
	.fill 24, 1, 0
	.asciz "faults"
	.org INIT_OFFSET
	.quad init_module
	.org MODULE_SIZE
