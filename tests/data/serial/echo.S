# A boot sector: says READY, echoes what is typed; F is answered by a flood of LINES numbered lines, then READY.
.code16
.globl _start
_start:
 xor %ax,%ax
 mov %ax,%ds
 mov %ax,%ss
 mov $0x7c00,%sp
 mov $0x3fa,%dx		# FIFO on
 mov $1,%al
 out %al,%dx
 mov $0x3fc,%dx		# OUT2: interrupts reach the PIC
 mov $0x0b,%al
 out %al,%dx
 mov $0x3f9,%dx		# one for each byte that comes
 mov $1,%al
 out %al,%dx
 mov $0xef,%al		# no other interrupt: at the timer's, the firmware would read the port too
 out %al,$0x21
 mov $ready,%si
 call puts
1: call getc
 cmp $'F',%al
 je flood
 call putc
 jmp 1b
flood:
 xor %ebx,%ebx
2: mov %ebx,%eax
 mov $8,%cx
3: rol $4,%eax
 push %ax
 and $15,%al
 add $'0',%al
 cmp $'9',%al
 jbe 4f
 add $39,%al
4: call putc
 pop %ax
 loop 3b
 mov $13,%al
 call putc
 mov $10,%al
 call putc
 inc %ebx
 cmp $LINES,%ebx
 jb 2b
 mov $ready,%si
 call puts
 jmp 1b
puts: lodsb
 test %al,%al
 jz 9f
 call putc
 jmp puts
9: ret
putc: push %dx
 push %ax
 mov $0x3fd,%dx
5: in %dx,%al
 test $0x20,%al
 jz 5b
 pop %ax
 mov $0x3f8,%dx
 out %al,%dx
 pop %dx
 ret
# A loop that only polls keeps an emulator from bringing the next byte: sleep until there is one. The firmware's handler ends the interrupt.
getc: cli
 mov $0x3fd,%dx
 in %dx,%al
 test $1,%al
 jnz 7f
 sti
 hlt
 jmp getc
7: sti
 mov $0x3f8,%dx
 in %dx,%al
 ret
ready: .asciz "READY\r\n"
 .org 510
 .word 0xaa55
