//! The PCI bus: what is there, its memory, its interrupts (PCI Local Bus 3.0; PCI Express Base 3.0, 7.2.2).

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use crate::arch::pci as host;
use crate::lock::Lock;
use crate::memory::paging;

/// How configuration space is reached.
#[derive(Clone, Copy)]
pub enum Config {
    /// By what reads and writes the word at bus, device, function and register, as ports of a PC number them.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    Ports { read: fn(usize) -> u32, write: fn(usize, u32) },
    /// 4 KiB a function, from an address on.
    Memory { base: usize, buses: usize },
}

/// The bus of a machine.
pub struct Host {
    pub config: Config,
    /// Addresses for memory of devices that firmware gave none.
    pub window: Range<usize>,
}

/// What a device must write where to interrupt.
#[derive(Clone, Copy)]
pub struct Message {
    pub address: u64,
    pub data: u32,
}

/// One function of a device.
#[derive(Clone, Copy)]
pub struct Function {
    config: Config,
    pub bus: u8,
    pub device: u8,
    pub function: u8,
    pub vendor: u16,
    pub id: u16,
    /// Class, subclass and programming interface: 0x010802 is an NVMe controller.
    pub class: u32,
}

/// Memory of a device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    pub address: usize,
    pub bytes: usize,
}

const COMMAND: usize = 0x04;
const COMMAND_IO: u32 = 1;
const COMMAND_MEMORY: u32 = 2;
const COMMAND_MASTER: u32 = 4;
const COMMAND_NO_INTX: u32 = 1 << 10;
const STATUS_CAPABILITIES: u32 = 1 << 20;
const CLASS: usize = 0x08;
const HEADER: usize = 0x0c;
const BARS: usize = 0x10;
const BUSES: usize = 0x18;
const CAPABILITIES: usize = 0x34;
const CAPABILITY_MSIX: u8 = 0x11;

static FUNCTIONS: Lock<Vec<Function>> = Lock::new(Vec::new());

/// Find what is there, and give memory to what firmware gave none.
#[inline(never)]
pub fn init() {
    let Some(Host { config, mut window }) = host::host() else {
        info!("pci: this machine has no bus");
        return;
    };
    match config {
        Config::Ports { .. } => debug!("pci: configuration space by ports"),
        Config::Memory { base, buses } => debug!("pci: configuration space of {buses} buses at {base:#x}"),
    }
    let mut found = Vec::new();
    scan(config, 0, &mut found);
    for function in &found {
        info!("pci: {function}");
        function.assign(&mut window);
        for number in 0..6 {
            if let Some(bar) = function.bar(number) {
                debug!("pci: {:02x}:{:02x}.{} memory {number} at {:#x}, {} KiB", function.bus, function.device, function.function, bar.address, bar.bytes >> 10);
            }
        }
    }
    *FUNCTIONS.lock() = found;
}

/// Everything that was found.
pub fn functions() -> Vec<Function> {
    FUNCTIONS.lock().clone()
}

fn scan(config: Config, bus: u8, found: &mut Vec<Function>) {
    for device in 0..32 {
        for function in 0..8 {
            let Some(it) = Function::at(config, bus, device, function) else {
                if function == 0 { break } else { continue }
            };
            found.push(it);
            if it.class >> 8 == 0x0604 {
                // Only buses that firmware numbered; the highest is checked, so that no ring of bridges is followed.
                let below = (it.read(BUSES) >> 8) as u8;
                if below > bus { scan(config, below, found) } else { warn!("pci: what is behind the bridge {it} is left out: firmware gave its bus no number") }
            }
            if function == 0 && it.read(HEADER) >> 23 & 1 == 0 {
                break;
            }
        }
    }
}

impl Function {
    fn at(config: Config, bus: u8, device: u8, function: u8) -> Option<Function> {
        let mut it = Function { config, bus, device, function, vendor: 0, id: 0, class: 0 };
        if let Config::Memory { base, buses } = config {
            if bus as usize >= buses {
                return None;
            }
            paging::map_device(base + it.place() * 4096, 4096);
        }
        let id = it.read(0);
        it.vendor = id as u16;
        it.id = (id >> 16) as u16;
        if it.vendor == 0xffff || it.vendor == 0 {
            return None;
        }
        it.class = it.read(CLASS) >> 8;
        Some(it)
    }

    fn place(&self) -> usize {
        (self.bus as usize) << 8 | (self.device as usize) << 3 | self.function as usize
    }

    /// The word of configuration space that begins at an offset, which 4 divides.
    pub fn read(&self, offset: usize) -> u32 {
        match self.config {
            Config::Ports { read, .. } => read(self.place() << 8 | offset),
            Config::Memory { base, .. } => unsafe { ((base + self.place() * 4096 + offset) as *const u32).read_volatile() },
        }
    }

    pub fn write(&self, offset: usize, value: u32) {
        match self.config {
            Config::Ports { write, .. } => write(self.place() << 8 | offset, value),
            Config::Memory { base, .. } => unsafe { ((base + self.place() * 4096 + offset) as *mut u32).write_volatile(value) },
        }
    }

    /// Let it answer at its memory and read and write ours; it interrupts by messages only.
    pub fn enable(&self) {
        self.write(COMMAND, self.read(COMMAND) & 0xffff | COMMAND_MEMORY | COMMAND_MASTER | COMMAND_NO_INTX);
    }

    /// Keep it from reading and writing our memory, whatever it was told to do before.
    #[allow(dead_code)]
    pub fn silence(&self) {
        self.write(COMMAND, self.read(COMMAND) & 0xffff & !COMMAND_MASTER);
    }

    /// Base address register `number`, if it has memory and an address.
    pub fn bar(&self, number: usize) -> Option<Bar> {
        self.sized(number).filter(|bar| bar.address != 0)
    }

    /// Where a capability is in configuration space.
    pub fn capability(&self, wanted: u8) -> Option<usize> {
        if self.read(COMMAND) & STATUS_CAPABILITIES == 0 {
            return None;
        }
        let mut offset = self.read(CAPABILITIES) as usize & 0xfc;
        // No more than there is room for: a ring of them is a broken device.
        for _ in 0..48 {
            if offset < 0x40 {
                return None;
            }
            let word = self.read(offset);
            if word as u8 == wanted {
                return Some(offset);
            }
            offset = (word >> 8) as usize & 0xfc;
        }
        None
    }

    /// Interrupts by messages: the table, all of it silent, and the feature switched on. None if the device has none.
    pub fn msix(&self) -> Option<MsiX> {
        let at = self.capability(CAPABILITY_MSIX)?;
        let count = (self.read(at) >> 16) as usize % 2048 + 1;
        let place = self.read(at + 4) as usize;
        let bar = self.bar(place & 7)?;
        let offset = place & !7;
        if offset + count * 16 > bar.bytes {
            return None;
        }
        let table = MsiX { table: paging::map_device(bar.address + offset, count * 16) as *mut u32, count };
        for number in 0..count {
            table.word(number, 3, 1);
        }
        self.write(at, self.read(at) & !(1 << 30) | 1 << 31);
        Some(table)
    }

    /// Give addresses of `window`, which gets smaller, to memory that has none. Bars of ports keep none: nobody here uses them.
    fn assign(&self, window: &mut Range<usize>) {
        let firmware_did = self.read(COMMAND) & COMMAND_MEMORY != 0;
        let mut number = 0;
        while number < self.bars() {
            let register = BARS + 4 * number;
            let kind = self.read(register);
            let wide = kind & 7 == 4;
            if let Some(bar) = self.sized(number)
                && !(firmware_did && bar.address != 0)
            {
                let address = window.start.next_multiple_of(bar.bytes);
                if address + bar.bytes > window.end {
                    warn!("pci: no room for memory {number} of {self}");
                } else {
                    self.write(register, address as u32);
                    if wide {
                        self.write(register + 4, (address >> 32) as u32);
                    }
                    window.start = address + bar.bytes;
                }
            }
            number += if wide { 2 } else { 1 };
        }
    }

    /// How many base address registers this kind of header has.
    fn bars(&self) -> usize {
        if self.read(HEADER) >> 16 & 0x7f == 0 { 6 } else { 0 }
    }

    /// A memory register, whether it has an address or not: what is written to it comes back without the bits below its size.
    fn sized(&self, number: usize) -> Option<Bar> {
        if number >= self.bars() {
            return None;
        }
        let register = BARS + 4 * number;
        let low = self.read(register);
        if low & 1 == 1 {
            return None;
        }
        let wide = low & 6 == 4 && number < 5;
        let high = if wide { self.read(register + 4) } else { 0 };
        let command = self.read(COMMAND) & 0xffff;
        self.write(COMMAND, command & !(COMMAND_MEMORY | COMMAND_IO));
        self.write(register, !0);
        let mut mask = 0xffff_ffff_0000_0000 | self.read(register) as u64 & !15;
        self.write(register, low);
        if wide {
            self.write(register + 4, !0);
            mask = mask & 0xffff_ffff | (self.read(register + 4) as u64) << 32;
            self.write(register + 4, high);
        }
        self.write(COMMAND, command);
        let bytes = (!mask).wrapping_add(1);
        (mask as u32 != 0 || wide && mask != 0)
            .then_some(Bar { address: ((high as u64) << 32 | low as u64 & !15) as usize, bytes: bytes as usize })
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Function { bus, device, function, vendor, id, class, .. } = self;
        write!(f, "{bus:02x}:{device:02x}.{function} {vendor:04x}:{id:04x} class {class:06x} {}", kind(*class))
    }
}

fn kind(class: u32) -> &'static str {
    match class >> 8 {
        0x0101 => "IDE controller",
        0x0106 => "SATA controller",
        0x0108 => "NVMe controller",
        0x0100 => "SCSI controller",
        0x0200 => "Ethernet controller",
        0x0300 => "VGA controller",
        0x0600 => "host bridge",
        0x0601 => "ISA bridge",
        0x0604 => "PCI bridge",
        0x0c03 => "USB controller",
        0x0c05 => "SMBus",
        _ => "other",
    }
}

/// A device's table of messages.
pub struct MsiX {
    table: *mut u32,
    pub count: usize,
}

impl MsiX {
    /// Let entry `number` say `message`.
    pub fn set(&self, number: usize, message: Message) {
        assert!(number < self.count, "the device has {} messages", self.count);
        self.word(number, 0, message.address as u32);
        self.word(number, 1, (message.address >> 32) as u32);
        self.word(number, 2, message.data);
        self.word(number, 3, 0);
    }

    fn word(&self, number: usize, word: usize, value: u32) {
        unsafe { self.table.add(number * 4 + word).write_volatile(value) };
    }
}
