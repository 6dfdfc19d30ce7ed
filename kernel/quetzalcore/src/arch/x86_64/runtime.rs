//! What compiled code takes for granted: C's memory functions, and names that the prebuilt `alloc` refers to.

use core::arch::asm;
use core::ffi::c_int;

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    unsafe {
        asm!(
            "rep movsq", "mov ecx, {rest:e}", "rep movsb",
            rest = in(reg) count & 7, inout("rcx") count / 8 => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags),
        )
    };
    to
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        return unsafe { memcpy(to, from, count) };
    }
    let (last_to, last_from) = (to.wrapping_add(count).wrapping_sub(1), from.wrapping_add(count).wrapping_sub(1));
    unsafe { asm!("std", "rep movsb", "cld", inout("rcx") count => _, inout("rdi") last_to => _, inout("rsi") last_from => _, options(nostack)) };
    to
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: c_int, count: usize) -> *mut u8 {
    unsafe {
        asm!(
            "rep stosq", "mov ecx, {rest:e}", "rep stosb",
            rest = in(reg) count & 7, in("rax") 0x0101_0101_0101_0101 * (value as u8 as u64),
            inout("rcx") count / 8 => _, inout("rdi") to => _,
            options(nostack, preserves_flags),
        )
    };
    to
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> c_int {
    // Eight at a time as long as they agree.
    let mut same = 0;
    while same + 8 <= count && unsafe { a.add(same).cast::<u64>().read_unaligned() == b.add(same).cast::<u64>().read_unaligned() } {
        same += 8;
    }
    for n in same..count {
        let (x, y) = unsafe { (a.add(n).read(), b.add(n).read()) };
        if x != y {
            return x as c_int - y as c_int;
        }
    }
    0
}

/// # Safety
/// As C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> c_int {
    unsafe { memcmp(a, b, count) }
}

// A prebuilt `alloc` has landing pads; with panic=abort none is ever entered.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    super::halt()
}

#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
