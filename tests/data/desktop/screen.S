# A desktop of 512 bytes: what is typed stands on the first line of the screen, and F starts and stops a redrawing of a whole line that
# never ends. Text mode 80 x 25 without a cursor, which would blink.
    .code16
    .globl _start
_start:
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $0x7c00, %sp
    mov $0x0003, %ax            # text mode, cleared
    int $0x10
    mov $0x0100, %ax            # no cursor
    mov $0x2000, %cx
    int $0x10
    mov $0xb800, %ax
    mov %ax, %es
    xor %di, %di                # where the next typed character goes
    xor %bx, %bx                # bl: whether it redraws; bh: with what
    mov $0x0752, %ax            # R: ready
    mov %ax, %es:(160 * 24)
    sti
loop:
    mov $0x0100, %ax            # is a key there?
    int $0x16
    jz redraw
    xor %ax, %ax
    int $0x16
    cmp $'F', %al
    je toggle
    mov $0x07, %ah
    mov %ax, %es:(%di)
    add $2, %di
    cmp $160, %di
    jb redraw
    xor %di, %di
redraw:
    test %bl, %bl
    jnz draw
    hlt                         # the next tick or key
    jmp loop
draw:
    inc %bh
    mov %bh, %al
    mov $0x07, %ah
    push %di
    mov $(160 * 10), %di
    mov $80, %cx
    rep stosw
    pop %di
    jmp loop
toggle:
    xor $1, %bl
    jmp loop
    .org 510
    .word 0xaa55
