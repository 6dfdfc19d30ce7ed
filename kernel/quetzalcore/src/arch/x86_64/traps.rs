//! Segments, exceptions and interrupts: GDT, TSS, IDT.

use core::arch::{asm, global_asm};

const VECTORS: usize = 256;

#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    low: u16,
    selector: u16,
    stack: u8,
    kind: u8,
    middle: u16,
    high: u32,
    _reserved: u32,
}

#[repr(C, packed)]
struct TaskState {
    _reserved: u32,
    stacks: [u64; 3],
    _reserved1: u64,
    /// Stacks of exceptions that must not use the interrupted one.
    own_stacks: [u64; 7],
    _reserved2: [u16; 5],
    ports: u16,
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

#[repr(C, align(16))]
struct Stack([u8; 16 << 10]);

static mut IDT: [Gate; VECTORS] = [Gate { low: 0, selector: 0, stack: 0, kind: 0, middle: 0, high: 0, _reserved: 0 }; VECTORS];
static mut GDT: [u64; 5] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0, 0];
static mut TSS: TaskState =
    TaskState { _reserved: 0, stacks: [0; 3], _reserved1: 0, own_stacks: [0; 7], _reserved2: [0; 5], ports: size_of::<TaskState>() as u16 };
static mut EXCEPTION_STACK: Stack = Stack([0; 16 << 10]);

/// What a trap leaves on the stack: pushed by the stubs below, then by the processor.
#[repr(C)]
pub struct Frame {
    /// r15 to rax without rsp, the last pushed first.
    registers: [u64; 15],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    flags: u64,
    rsp: u64,
    ss: u64,
}

// One stub of 16 bytes a vector: a vector without an error code of the processor's gets a 0 in its place.
global_asm!(
    ".section .text",
    ".balign 16",
    ".global trap_stubs",
    "trap_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    ".if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)",
    "push $0",
    ".endif",
    "pushq $vector",
    "jmp trap_entry",
    ".set vector, vector + 1",
    ".endr",
    "trap_entry:",
    "push %rax", "push %rbx", "push %rcx", "push %rdx", "push %rsi", "push %rdi", "push %rbp",
    "push %r8", "push %r9", "push %r10", "push %r11", "push %r12", "push %r13", "push %r14", "push %r15",
    "cld",
    "mov %rsp, %rdi",
    "mov %rsp, %rbx",
    "sub $512, %rsp",
    "and $-16, %rsp",
    "fxsave64 (%rsp)",
    "call trap",
    "fxrstor64 (%rsp)",
    "mov %rbx, %rsp",
    "pop %r15", "pop %r14", "pop %r13", "pop %r12", "pop %r11", "pop %r10", "pop %r9", "pop %r8",
    "pop %rbp", "pop %rdi", "pop %rsi", "pop %rdx", "pop %rcx", "pop %rbx", "pop %rax",
    "add $16, %rsp",
    "iretq",
    options(att_syntax)
);

unsafe extern "C" {
    static trap_stubs: [[u8; 16]; VECTORS];
}

#[inline(never)]
pub fn init() {
    const INTERRUPT_GATE: u8 = 0x8e;
    const TASK: u16 = 0x18;
    unsafe {
        let task = &raw mut TSS as u64;
        (*(&raw mut TSS)).own_stacks[0] = &raw const EXCEPTION_STACK as u64 + size_of::<Stack>() as u64;
        GDT[3] = 0x0000_8900_0000_0000 | (task & 0xff_ffff) << 16 | (task >> 24 & 0xff) << 56 | (size_of::<TaskState>() as u64 - 1);
        GDT[4] = task >> 32;
        for vector in 0..VECTORS {
            let stub = &raw const trap_stubs as u64 + 16 * vector as u64;
            IDT[vector] = Gate {
                low: stub as u16,
                selector: 8,
                stack: u8::from(vector < 32), // exceptions: the stack itself may be the reason
                kind: INTERRUPT_GATE,
                middle: (stub >> 16) as u16,
                high: (stub >> 32) as u32,
                _reserved: 0,
            };
        }
        let gdt = Pointer { limit: size_of::<[u64; 5]>() as u16 - 1, base: &raw const GDT as u64 };
        let idt = Pointer { limit: size_of::<[Gate; VECTORS]>() as u16 - 1, base: &raw const IDT as u64 };
        asm!("lgdt [{}]", "lidt [{}]", "ltr {2:x}", in(reg) &gdt, in(reg) &idt, in(reg) TASK, options(nostack));
    }
}

// Accesses that may fail: `trap` knows where they are, and goes on at try_failed.
global_asm!(
    "can_read: try_read: mov (%rdi), %al",
    "mov $1, %eax",
    "ret",
    "can_write: mov $1, %eax",
    "mov (%rdi), %dl", // what may be read keeps its value
    "try_write: mov %dl, (%rdi)",
    "ret",
    "try_failed: xor %eax, %eax",
    "ret",
    options(att_syntax)
);

unsafe extern "C" {
    #[link_name = "can_read"]
    fn read_succeeds(address: usize) -> bool;
    #[link_name = "can_write"]
    fn write_succeeds(address: usize) -> bool;
    static try_read: u8;
    static try_write: u8;
    static try_failed: u8;
}

/// Whether the byte at an address can be read.
pub fn can_read(address: usize) -> bool {
    unsafe { read_succeeds(address) }
}

/// Whether the byte at an address can be written, if it can be read.
pub fn can_write(address: usize) -> bool {
    can_read(address) && unsafe { write_succeeds(address) }
}

const NAMES: [&str; 22] = [
    "divide error", "debug", "NMI", "breakpoint", "overflow", "bound range exceeded", "invalid opcode", "no FPU", "double fault", "",
    "invalid TSS", "segment not present", "stack fault", "general protection fault", "page fault", "", "FPU error", "alignment check",
    "machine check", "SIMD error", "virtualization exception", "control protection",
];

#[unsafe(no_mangle)]
extern "C" fn trap(frame: &mut Frame) {
    if frame.vector >= 32 {
        return super::interrupts::dispatch(frame.vector as usize);
    }
    let tried = [&raw const try_read as u64, &raw const try_write as u64].contains(&frame.rip);
    if tried {
        frame.rip = &raw const try_failed as u64;
        return;
    }
    let name = NAMES.get(frame.vector as usize).copied().unwrap_or("");
    let address: u64;
    unsafe { asm!("mov {}, cr2", out(reg) address, options(nomem, nostack)) };
    panic!(
        "{name} (vector {}, error {:#x}) at {:#018x}, address {address:#018x}, stack {:#018x}",
        frame.vector, frame.error, frame.rip, frame.rsp
    );
}
