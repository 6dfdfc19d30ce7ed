//! An NVMe disk (NVM Express base specification 1.4): one admin queue, one I/O queue, completions by MSI-X.
//!
//! The processor sleeps while the disk works. What an interrupt says is only "look"; what there is, the completion queue says.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering, fence};

use alloc::string::String;
use alloc::vec::Vec;

use crate::arch::interrupts::{self, Message};
use crate::arch::time;
use crate::block::{BlockDevice, BlockError};
use crate::lock::Lock;
use crate::memory::pages::{self, PAGE};
use crate::memory::paging;
use crate::pci::{self, Function};

/// Mass storage, non-volatile memory, NVM Express.
const CLASS: u32 = 0x01_0802;

const CAPABILITIES: usize = 0x00;
const CONFIGURATION: usize = 0x14;
const STATUS: usize = 0x1c;
const ADMIN_SIZES: usize = 0x24;
const ADMIN_SUBMISSIONS: usize = 0x28;
const ADMIN_COMPLETIONS: usize = 0x30;
const DOORBELLS: usize = 0x1000;

const ENABLE: u32 = 1;
/// Entries of 64 and 16 bytes, pages of 4 KiB, the NVM command set.
const ENTRY_SIZES: u32 = 6 << 16 | 4 << 20;
const SHUT_DOWN: u32 = 1 << 14;
const READY: u32 = 1;
const FATAL: u32 = 1 << 1;
const SHUTDOWN_MASK: u32 = 3 << 2;
const SHUTDOWN_DONE: u32 = 2 << 2;

const CREATE_SUBMISSIONS: u32 = 0x01;
const CREATE_COMPLETIONS: u32 = 0x05;
const IDENTIFY: u32 = 0x06;
const FLUSH: u32 = 0x00;
const WRITE: u32 = 0x01;
const READ: u32 = 0x02;

const ADMIN_ENTRIES: u16 = 8;
/// One is always left empty; the rest is the most that can be on the way.
const IO_ENTRIES: u16 = 64;
/// What a page of addresses of pages can name.
const MOST_BYTES: usize = PAGE / 8 * PAGE;
/// The only namespace that is used.
const NAMESPACE: u32 = 1;

static INTERRUPTS: AtomicU64 = AtomicU64::new(0);

/// Interrupts that were taken, of all disks.
pub fn interrupts_taken() -> u64 {
    INTERRUPTS.load(Ordering::Relaxed)
}

/// The message of every queue of every disk: its only effect is to end a sleep.
fn message() -> Option<Message> {
    static MESSAGE: Lock<Option<Message>> = Lock::new(None);
    let mut message = MESSAGE.lock();
    if message.is_none() {
        let count = |_| {
            INTERRUPTS.fetch_add(1, Ordering::Relaxed);
        };
        *message = interrupts::allocate(count, 0);
    }
    *message
}

/// Why there is no disk.
pub enum Problem {
    Absent,
    Unusable(&'static str),
    NotReady { milliseconds: u64 },
    Command(BlockError),
}

impl From<BlockError> for Problem {
    fn from(error: BlockError) -> Self {
        Self::Command(error)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("there is no NVMe controller on the PCI bus"),
            Self::Unusable(why) => f.write_str(why),
            Self::NotReady { milliseconds } => write!(f, "the NVMe controller did not become ready within {milliseconds} ms"),
            Self::Command(error) => write!(f, "the NVMe controller could not be set up: {error}"),
        }
    }
}

#[derive(Clone, Copy)]
struct Registers(*mut u8);

impl Registers {
    fn read(self, offset: usize) -> u32 {
        unsafe { self.0.add(offset).cast::<u32>().read_volatile() }
    }

    fn write(self, offset: usize, value: u32) {
        unsafe { self.0.add(offset).cast::<u32>().write_volatile(value) };
    }

    fn read_long(self, offset: usize) -> u64 {
        u64::from(self.read(offset)) | u64::from(self.read(offset + 4)) << 32
    }

    fn write_long(self, offset: usize, value: u64) {
        self.write(offset, value as u32);
        self.write(offset + 4, (value >> 32) as u32);
    }
}

/// Zeroed pages that a device may reach; given back at the end.
struct Pages {
    start: usize,
}

impl Pages {
    fn new(bytes: usize) -> Result<Pages, Problem> {
        let start = pages::allocate_zeroed(pages::order_of(bytes)).ok_or(Problem::Unusable("too little memory for the NVMe queues"))?;
        Ok(Pages { start })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        pages::release(self.start);
    }
}

/// A command: 16 words of 32 bits.
type Command = [u32; 16];

fn command(opcode: u32, namespace: u32, address: usize, parameters: &[u32]) -> Command {
    let mut words = [0; 16];
    words[0] = opcode;
    words[1] = namespace;
    (words[6], words[7]) = (address as u32, (address as u64 >> 32) as u32);
    words[10..10 + parameters.len()].copy_from_slice(parameters);
    words
}

/// A command that has ended: the number it was given, and the controller's status, 0 for well.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    pub number: u16,
    pub status: u16,
}

struct Queue {
    submissions: Pages,
    completions: Pages,
    entries: u16,
    tail: u16,
    head: u16,
    /// What the phase bit of a new completion is: it turns with every round.
    phase: u32,
    /// Numbers of commands on the way, a bit each.
    busy: u64,
    tail_doorbell: usize,
    head_doorbell: usize,
}

impl Queue {
    fn new(number: usize, entries: u16, stride: usize) -> Result<Queue, Problem> {
        Ok(Queue {
            submissions: Pages::new(usize::from(entries) * 64)?,
            completions: Pages::new(usize::from(entries) * 16)?,
            entries,
            tail: 0,
            head: 0,
            phase: 1,
            busy: 0,
            tail_doorbell: DOORBELLS + 2 * number * stride,
            head_doorbell: DOORBELLS + (2 * number + 1) * stride,
        })
    }

    fn on_the_way(&self) -> u32 {
        self.busy.count_ones()
    }

    /// A number for a command; None while the queue is full.
    fn free_number(&self) -> Option<u16> {
        let number = self.busy.trailing_ones() as u16;
        (number < self.entries - 1).then_some(number)
    }

    fn submit(&mut self, registers: Registers, number: u16, mut words: Command) {
        words[0] |= u32::from(number) << 16;
        self.busy |= 1 << number;
        let place = (self.submissions.start + 64 * usize::from(self.tail)) as *mut Command;
        unsafe { place.write_volatile(words) };
        self.tail = (self.tail + 1) % self.entries;
        fence(Ordering::SeqCst); // the command, and the data it points to, before the doorbell
        registers.write(self.tail_doorbell, u32::from(self.tail));
    }

    /// The next completion, if there is one.
    fn take(&mut self, registers: Registers) -> Result<Option<Ended>, BlockError> {
        let place = (self.completions.start + 16 * usize::from(self.head)) as *const u32;
        let last = unsafe { place.add(3).read_volatile() };
        if last >> 16 & 1 != self.phase {
            return Ok(None);
        }
        fence(Ordering::SeqCst); // the data behind the completion after it
        self.head = (self.head + 1) % self.entries;
        if self.head == 0 {
            self.phase ^= 1;
        }
        registers.write(self.head_doorbell, u32::from(self.head));
        let number = last as u16;
        if number >= self.entries || self.busy & 1 << number == 0 {
            return Err(BlockError::Failed); // it ends what was never begun
        }
        self.busy &= !(1 << number);
        Ok(Some(Ended { number, status: (last >> 17) as u16 & 0x7ff }))
    }
}

pub struct Nvme {
    function: Function,
    registers: Registers,
    admin: Queue,
    io: Queue,
    /// For each command on the way a page with the addresses of its data's pages.
    lists: Pages,
    sector_size: usize,
    sectors: u64,
    /// The most that a command may move.
    most_bytes: usize,
    timeout_ms: u64,
    pub model: String,
    pub serial: String,
    failed: bool,
}

impl Nvme {
    /// The first NVMe controller's first namespace. `timeout_ms`: how long a command may take; 0: as long as it likes.
    pub fn open(timeout_ms: u64) -> Result<Nvme, Problem> {
        let function = pci::functions().into_iter().find(|function| function.class == CLASS).ok_or(Problem::Absent)?;
        Nvme::start(&function, timeout_ms)
    }

    fn start(function: &Function, timeout_ms: u64) -> Result<Nvme, Problem> {
        let bar = function.bar(0).ok_or(Problem::Unusable("the NVMe controller has no registers in memory"))?;
        if bar.bytes < DOORBELLS + PAGE {
            return Err(Problem::Unusable("the NVMe controller has too few registers"));
        }
        function.enable();
        let registers = Registers(paging::map_device(bar.address, bar.bytes));
        let capabilities = registers.read_long(CAPABILITIES);
        if capabilities == u64::MAX {
            return Err(Problem::Unusable("the NVMe controller does not answer"));
        }
        if capabilities >> 48 & 0xf != 0 {
            return Err(Problem::Unusable("the NVMe controller has no pages of 4 KiB"));
        }
        let stride = 4 << (capabilities >> 32 & 0xf);
        if DOORBELLS + 4 * stride > bar.bytes {
            return Err(Problem::Unusable("the NVMe controller's doorbells lie beyond its registers"));
        }
        let entries = IO_ENTRIES.min((capabilities as u16).saturating_add(1));
        let mut this = Nvme {
            function: *function,
            registers,
            admin: Queue::new(0, ADMIN_ENTRIES, stride)?,
            io: Queue::new(1, entries, stride)?,
            lists: Pages::new(usize::from(entries) * PAGE)?,
            sector_size: 0,
            sectors: 0,
            most_bytes: MOST_BYTES,
            timeout_ms,
            model: String::new(),
            serial: String::new(),
            failed: false,
        };
        let table = function.msix().ok_or(Problem::Unusable("the NVMe controller cannot interrupt by MSI-X"))?;
        table.set(0, message().ok_or(Problem::Unusable("no interrupt is left for the NVMe controller"))?);
        this.enable((capabilities >> 24 & 0xff) * 500)?;
        this.identify()?;
        this.create_queue()?;
        Ok(this)
    }

    fn enable(&mut self, milliseconds: u64) -> Result<(), Problem> {
        let registers = self.registers;
        registers.write(CONFIGURATION, 0);
        self.until(milliseconds, |status| status & READY == 0)?;
        let entries = u32::from(ADMIN_ENTRIES) - 1;
        registers.write(ADMIN_SIZES, entries << 16 | entries);
        registers.write_long(ADMIN_SUBMISSIONS, self.admin.submissions.start as u64);
        registers.write_long(ADMIN_COMPLETIONS, self.admin.completions.start as u64);
        registers.write(CONFIGURATION, ENTRY_SIZES | ENABLE);
        self.until(milliseconds, |status| status & (READY | FATAL) != 0)?;
        if registers.read(STATUS) & FATAL != 0 {
            return Err(BlockError::Failed.into());
        }
        Ok(())
    }

    /// Until the status register is as wanted; no interrupt tells of that.
    fn until(&self, milliseconds: u64, wanted: impl Fn(u32) -> bool) -> Result<(), Problem> {
        let milliseconds = milliseconds.max(500);
        let end = time::now_ns() + milliseconds * 1_000_000;
        while !wanted(self.registers.read(STATUS)) {
            if time::now_ns() > end {
                return Err(Problem::NotReady { milliseconds });
            }
            core::hint::spin_loop();
        }
        Ok(())
    }

    fn identify(&mut self) -> Result<(), Problem> {
        let page = Pages::new(PAGE)?;
        let data = unsafe { core::slice::from_raw_parts(page.start as *const u8, PAGE) };
        let text = |range: core::ops::Range<usize>| String::from_utf8_lossy(&data[range]).trim().chars().filter(|c| !c.is_control()).collect();
        let word = |offset: usize| u32::from_le_bytes([data[offset], data[offset + 1], data[offset + 2], data[offset + 3]]);

        self.administer(command(IDENTIFY, 0, page.start, &[1]))?;
        self.serial = text(4..24);
        self.model = text(24..64);
        if data[77] != 0 {
            self.most_bytes = self.most_bytes.min(PAGE.checked_shl(data[77].into()).unwrap_or(MOST_BYTES).max(PAGE));
        }

        self.administer(command(IDENTIFY, NAMESPACE, page.start, &[0]))?;
        self.sectors = u64::from(word(0)) | u64::from(word(4)) << 32;
        if self.sectors == 0 {
            return Err(Problem::Unusable("the NVMe controller has no namespace 1"));
        }
        let format = word(128 + 4 * usize::from(data[26] & 0xf));
        if format & 0xffff != 0 {
            return Err(Problem::Unusable("the namespace's sectors carry metadata"));
        }
        let shift = format >> 16 & 0xff;
        if !(9..=12).contains(&shift) {
            return Err(Problem::Unusable("the namespace's sectors are neither of 512 to 4096 bytes"));
        }
        self.sector_size = 1 << shift;
        Ok(())
    }

    fn create_queue(&mut self) -> Result<(), Problem> {
        const CONTIGUOUS: u32 = 1;
        const INTERRUPTS: u32 = 2;
        let shape = 1 | u32::from(self.io.entries - 1) << 16;
        let completions = command(CREATE_COMPLETIONS, 0, self.io.completions.start, &[shape, CONTIGUOUS | INTERRUPTS]);
        self.administer(completions)?;
        self.administer(command(CREATE_SUBMISSIONS, 0, self.io.submissions.start, &[shape, CONTIGUOUS | 1 << 16]))?;
        Ok(())
    }

    fn administer(&mut self, words: Command) -> Result<(), BlockError> {
        let number = self.admin.free_number().ok_or(BlockError::Failed)?;
        self.admin.submit(self.registers, number, words);
        let ended = self.wait_for(|this| &mut this.admin)?;
        if ended.status == 0 { Ok(()) } else { Err(BlockError::Refused { status: ended.status }) }
    }

    /// Sleep until a command of a queue ends. A controller that lets the time pass is switched off: it must not write to memory that is
    /// somebody else's by then.
    fn wait_for(&mut self, queue: impl Fn(&mut Nvme) -> &mut Queue) -> Result<Ended, BlockError> {
        let start = time::now_ns();
        let limit = self.timeout_ms * 1_000_000;
        loop {
            let registers = self.registers;
            match queue(self).take(registers) {
                Ok(Some(ended)) => return Ok(ended),
                Ok(None) => {}
                Err(error) => {
                    self.give_up();
                    return Err(error);
                }
            }
            let passed = time::now_ns() - start;
            if limit > 0 && passed >= limit {
                let gone = registers.read(STATUS) == u32::MAX || registers.read(STATUS) & FATAL != 0;
                self.give_up();
                return Err(if gone { BlockError::Failed } else { BlockError::TimedOut { milliseconds: self.timeout_ms } });
            }
            self.sleep(limit.saturating_sub(passed));
        }
    }

    /// Until the next interrupt, and not much longer than this where commands have a limit at all. Where they have none no alarm is set:
    /// an emulator's virtual time may jump to it while the disk still works.
    pub fn sleep(&self, nanoseconds: u64) {
        if self.timeout_ms == 0 { interrupts::wait() } else { interrupts::wait_at_most(nanoseconds) }
    }

    fn give_up(&mut self) {
        self.failed = true;
        self.registers.write(CONFIGURATION, 0);
        let _ = self.until(0, |status| status & READY == 0);
        self.function.silence();
    }

    /// Begin to move whole sectors between the disk and memory, if the queue has room: the command's number.
    ///
    /// # Safety
    /// The memory at `address` is the disk's until the command has ended. `address` is divisible by 4, `bytes` is at most `most_bytes`.
    pub unsafe fn begin(&mut self, write: bool, first: u64, address: usize, bytes: usize) -> Result<Option<u16>, BlockError> {
        if self.failed {
            return Err(BlockError::Failed);
        }
        let Some(number) = self.io.free_number() else { return Ok(None) };
        let count = (bytes / self.sector_size) as u32;
        let opcode = if write { WRITE } else { READ };
        let mut words = command(opcode, NAMESPACE, address, &[first as u32, (first >> 32) as u32, count - 1]);
        // The first page may begin in its middle; of the others, one is named in the command, more in a list.
        let second = address / PAGE * PAGE + PAGE;
        let end = address + bytes;
        if end > second {
            let mut next = second;
            if end > second + PAGE {
                let list = self.lists.start + usize::from(number) * PAGE;
                for (index, page) in (second..end).step_by(PAGE).enumerate() {
                    unsafe { (list as *mut u64).add(index).write_volatile(page as u64) };
                }
                next = list;
            }
            (words[8], words[9]) = (next as u32, (next as u64 >> 32) as u32);
        }
        self.io.submit(self.registers, number, words);
        Ok(Some(number))
    }

    /// Sleep until a command that was begun ends, however it ends.
    pub fn end(&mut self) -> Result<Ended, BlockError> {
        if self.failed || self.io.on_the_way() == 0 {
            return Err(BlockError::Failed);
        }
        self.wait_for(|this| &mut this.io)
    }

    /// The most bytes that `begin` takes.
    pub fn most_bytes(&self) -> usize {
        self.most_bytes
    }

    /// Keep the queue as full as it can be until all is moved.
    fn transfer(&mut self, write: bool, first: u64, address: usize, bytes: usize) -> Result<(), BlockError> {
        let mut begun = 0;
        let mut refused = None;
        while (begun < bytes && refused.is_none()) || self.io.on_the_way() > 0 {
            if begun < bytes && refused.is_none() {
                let part = self.most_bytes.min(bytes - begun);
                let sector = first + (begun / self.sector_size) as u64;
                // The buffer is the caller's, who waits until nothing is on the way, also after an error.
                if unsafe { self.begin(write, sector, address + begun, part)? }.is_some() {
                    begun += part;
                    continue;
                }
            }
            let ended = self.end()?;
            if ended.status != 0 {
                refused.get_or_insert(ended.status);
            }
        }
        refused.map_or(Ok(()), |status| Err(BlockError::Refused { status }))
    }
}

impl BlockDevice for Nvme {
    fn sector_size(&self) -> usize {
        self.sector_size
    }

    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn read(&mut self, first: u64, buffer: &mut [u8]) -> Result<(), BlockError> {
        self.check(first, buffer.len())?;
        if buffer.as_ptr() as usize % 4 == 0 {
            return self.transfer(false, first, buffer.as_mut_ptr() as usize, buffer.len());
        }
        // The disk takes only addresses that are divisible by 4.
        let mut words: Vec<u32> = alloc::vec![0; buffer.len() / 4];
        self.transfer(false, first, words.as_mut_ptr() as usize, buffer.len())?;
        for (bytes, word) in buffer.chunks_exact_mut(4).zip(&words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Ok(())
    }

    fn write(&mut self, first: u64, data: &[u8]) -> Result<(), BlockError> {
        self.check(first, data.len())?;
        if data.as_ptr() as usize % 4 == 0 {
            return self.transfer(true, first, data.as_ptr() as usize, data.len());
        }
        let words: Vec<u32> = data.chunks_exact(4).map(|bytes| u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect();
        self.transfer(true, first, words.as_ptr() as usize, data.len())
    }

    fn flush(&mut self) -> Result<(), BlockError> {
        if self.failed {
            return Err(BlockError::Failed);
        }
        let number = self.io.free_number().ok_or(BlockError::Failed)?;
        self.io.submit(self.registers, number, command(FLUSH, NAMESPACE, 0, &[]));
        let ended = self.end()?;
        if ended.status == 0 { Ok(()) } else { Err(BlockError::Refused { status: ended.status }) }
    }
}

impl Drop for Nvme {
    fn drop(&mut self) {
        if !self.failed {
            let now = self.registers.read(CONFIGURATION);
            self.registers.write(CONFIGURATION, now | SHUT_DOWN);
            let _ = self.until(self.timeout_ms, |status| status & SHUTDOWN_MASK == SHUTDOWN_DONE);
        }
        // The queues' memory goes back: the controller must have let go of it.
        self.registers.write(CONFIGURATION, 0);
        let _ = self.until(self.timeout_ms, |status| status & READY == 0);
        self.function.silence();
    }
}
