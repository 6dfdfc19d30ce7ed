//! QuetzalCore OS: the reference kernel of the lab.
//!
//! `kernel_main` reads as the boot order; each module is a subject. The steps are never inlined: a profile names each.

#![no_std]
#![no_main]

extern crate alloc;

#[macro_use]
mod console;
mod arch;
#[cfg(target_arch = "x86_64")]
mod block;
mod boot;
mod cmdline;
#[cfg(not(target_arch = "x86_64"))]
mod devicetree;
mod exit;
#[cfg(target_arch = "x86_64")]
mod ext4;
mod lock;
mod memory;
mod milestone;
#[cfg(target_arch = "x86_64")]
mod nvme;
mod panic;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // drivers of devices are for x86_64 only, so far
mod pci;
mod tests;
mod variant;

use exit::Outcome;
use memory::leak::Mark;

/// Where the entry code of the architecture goes, with what the loader left in registers; on the boot stack, interrupts off.
#[unsafe(no_mangle)]
extern "C" fn kernel_main(first: usize, second: usize) -> ! {
    arch::serial::init();
    println!("QuetzalCore OS v1.0");
    arch::time::init();
    arch::traps::init();
    milestone::reached("kernel_entry");

    let boot = match arch::boot_info(first, second) {
        Ok(boot) => boot,
        Err(why) => exit::refuse(format_args!("boot: {why}")),
    };
    let options = match cmdline::parse(boot.command_line) {
        Ok(options) => options,
        Err(why) => exit::refuse(format_args!("command line: {why}")),
    };
    console::set_level(options.log);
    exit::configure(options.exit);
    #[cfg(target_arch = "x86_64")]
    tests::storage::configure(&options);
    info!("boot: by {} on {}, command line \"{}\"", boot.protocol, arch::NAME, boot.command_line);
    arch::cpu::describe();

    if let Err(why) = memory::init(&boot) {
        exit::refuse(format_args!("memory: {why}"));
    }
    arch::interrupts::init();
    pci::init();
    milestone::reached("init");

    let mark = Mark::now();
    variant::run(options.variant);
    milestone::reached("ready");
    milestone::summary();

    let tested = if options.tests.is_empty() { Outcome::Success } else { tests::run(options.tests) };
    let clean = mark.check();
    if !clean && !options.tests.is_empty() {
        println!("Bail out! memory leaked between the first test and the last"); // power-off alone has no status
    }
    memory::report();
    exit::exit(if clean { tested } else { Outcome::Failure })
}
