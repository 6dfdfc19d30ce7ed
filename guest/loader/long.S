# blocks_long of poly1305.c, where the processor has words of 64 bits all the time.

	.text
	.global blocks_long
blocks_long:
	push %rbp
	push %rbx
	push %r12
	push %r13
	push %r14
	push %r15
	mov %ecx, %ebx
	mov %edx, %ecx
#include "poly1305_long.h"
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbx
	pop %rbp
	ret
	.section .note.GNU-stack, "", @progbits
