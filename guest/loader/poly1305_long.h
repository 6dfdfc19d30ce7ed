# The same as `blocks` of poly1305.c by words of 64 bits: no word of the sum leaves its register, which is most of the time where the processor is
# emulated. Included where %rdi is the state, %rsi the bytes, %ecx the count of blocks (not 0), %rbx `high`. Changes every register but %rsp.
#
# h0 h1 h2 = %r8 %r9 %r10; r0 r1 = %r11 %r12; s1 = 5/4 of r1 = %r13, a whole number, since the clamped r1 is a multiple of 4.
	mov (%rdi), %r8
	mov 8(%rdi), %r9
	mov 16(%rdi), %r10d
	mov 20(%rdi), %r11
	mov 28(%rdi), %r12
	mov %r12, %r13
	shr $2, %r13
	add %r12, %r13
1:	add (%rsi), %r8
	adc 8(%rsi), %r9
	adc %rbx, %r10
	add $16, %rsi
	mov %r12, %rax			# %r15:%r14 = h0 * r1 + h1 * r0 + h2 * s1
	mul %r8
	mov %rax, %r14
	mov %rdx, %r15
	mov %r11, %rax			# %rbp:%r8 = h0 * r0 + h1 * s1
	mul %r8
	mov %rax, %r8
	mov %rdx, %rbp
	mov %r11, %rax
	mul %r9
	add %rax, %r14
	adc %rdx, %r15
	mov %r13, %rax
	mul %r9
	add %rax, %r8
	adc %rdx, %rbp
	mov %r13, %rax
	imul %r10, %rax
	add %rax, %r14
	adc $0, %r15
	imul %r11, %r10			# h2 * r0
	add %rbp, %r14
	adc %r10, %r15
	mov %r14, %r9
	mov %r15, %rax			# 5 times what is above 2^130
	shr $2, %rax
	mov %r15, %r10
	and $3, %r10d
	and $-4, %r15
	add %r15, %rax
	add %rax, %r8
	adc $0, %r9
	adc $0, %r10
	dec %ecx
	jnz 1b
	mov %r8, (%rdi)
	mov %r9, 8(%rdi)
	mov %r10d, 16(%rdi)
