# The smallest kernel that a PC boots by the 16-bit protocol of Linux (Documentation/arch/x86/boot.rst): it says that it is ready, and
# then a numbered line twice a second; what is typed is echoed. FILL bytes behind it are there to be fetched.
.code16
 .org 0x1f1
 .byte 4			# setup_sects
 .org 0x1fe
 .word 0xaa55
 .globl _start
_start:
 .byte 0xeb, main - 0x202
 .ascii "HdrS"
 .word 0x20f
 .org 0x211
 .byte 1			# loaded high
 .org 0x22c
 .long 0x7fffffff		# initrd_addr_max
 .org 0x238
 .long 2047			# cmdline_size
 .org 0x26c
main:
 mov $0x3fb,%dx			# 115200, 8N1
 mov $0x83,%al
 out %al,%dx
 mov $0x3f8,%dx
 mov $1,%al
 out %al,%dx
 inc %dx
 xor %al,%al
 out %al,%dx
 mov $0x3fb,%dx
 mov $3,%al
 out %al,%dx
 sti
 mov $banner,%si
 call puts
 xor %ebx,%ebx
 xor %ax,%ax
 mov %ax,%fs
beat:
 inc %ebx
 mov $word,%si
 call puts
 mov %ebx,%eax
 mov $4,%cx
 shl $16,%eax
1: rol $4,%eax
 push %eax
 and $15,%al
 add $'0',%al
 cmp $'9',%al
 jbe 2f
 add $39,%al
2: call putc
 pop %eax
 loop 1b
 mov $eol,%si
 call puts
 mov %fs:0x46c,%edi		# the firmware's clock: 18.2 a second
 add $9,%edi
3: mov $0x3fd,%dx
 in %dx,%al
 test $1,%al
 jz 4f
 mov $0x3f8,%dx
 in %dx,%al
 call putc
 jmp 3b
4: hlt
 cmp %edi,%fs:0x46c
 jb 3b
 jmp beat
puts: lodsb
 test %al,%al
 jz 9f
 call putc
 jmp puts
9: ret
putc: push %ax
 mov $0x3fd,%dx
5: in %dx,%al
 test $0x20,%al
 jz 5b
 pop %ax
 mov $0x3f8,%dx
 out %al,%dx
 ret
banner: .asciz "\r\nbeats: a kernel of a few lines\r\nbeats: ready\r\n"
word: .asciz "beat "
eol: .asciz "\r\n"
 .org 2560
 .fill FILL, 1, 0x5a
