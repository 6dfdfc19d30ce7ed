//! Self-tests of the disk and of ext4 on it, and the benchmark `iops`. Only `ext4` and `iops` change what is on the disk, and only by
//! files of their own; `/quetzalcore.bin` stays, for whoever wants to see it from outside.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Display;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Ended, Test};
use crate::arch::{interrupts, time};
use crate::block::{BlockDevice, BlockError};
use crate::cmdline::Options;
use crate::ext4::{Access, Error, Ext4};
use crate::nvme::{Nvme, Problem, interrupts_taken};

pub const NVME: &[Test] = &[
    ("identify", || with_disk(identify)),
    ("write_and_read_back", || with_disk(write_and_read_back)),
    ("beyond_the_end", || with_disk(beyond_the_end)),
    ("deep_queue", || with_disk(deep_queue)),
    ("interrupts", || with_disk(by_interrupts)),
];

pub const EXT4: &[Test] = &[
    ("write_and_read_back", || with_disk(|disk| with_files(disk, file_and_back))),
    ("directories", || with_disk(|disk| with_files(disk, directories))),
    ("holes", || with_disk(|disk| with_files(disk, holes))),
    ("full_disk", || with_disk(|disk| with_files(disk, full_disk))),
];

pub const IOPS: &[Test] = &[("read", || with_disk(read_iops)), ("write", || with_disk(write_iops))];

/// The file that stays. Its block `n` of 4096 bytes is the number `n * GOLDEN` (64 bits, wrapping, little-endian) over and over.
const FILE: &str = "/quetzalcore.bin";
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const BLOCK: usize = 4096;
const STEP: usize = 1 << 20;

static TIMEOUT: AtomicU64 = AtomicU64::new(0);
static FILE_MIB: AtomicU64 = AtomicU64::new(0);
static REQUESTS: AtomicU64 = AtomicU64::new(0);
/// Without `all`, whoever names a test of the disk wants one to be there.
static DEMANDED: AtomicBool = AtomicBool::new(false);

pub fn configure(options: &Options) {
    TIMEOUT.store(options.disk_timeout, Ordering::Relaxed);
    FILE_MIB.store(options.file, Ordering::Relaxed);
    REQUESTS.store(options.requests, Ordering::Relaxed);
    DEMANDED.store(options.tests != "all", Ordering::Relaxed);
}

type Outcome = Result<Ended, Failure>;

/// What went wrong, in words.
struct Failure(alloc::string::String);

impl<T: Display> From<T> for Failure {
    fn from(what: T) -> Self {
        Failure(format!("{what}"))
    }
}

fn check(well: bool, what: &str) -> Result<(), Failure> {
    if well { Ok(()) } else { Err(what.into()) }
}

fn with_disk(test: impl FnOnce(&mut Nvme) -> Outcome) -> Ended {
    let mut disk = match Nvme::open(TIMEOUT.load(Ordering::Relaxed)) {
        Ok(disk) => disk,
        Err(Problem::Absent) if !DEMANDED.load(Ordering::Relaxed) => return Ended::Skip("there is no NVMe controller"),
        Err(problem) => {
            return failed(format_args!("nvme: {problem}"));
        }
    };
    test(&mut disk).unwrap_or_else(|Failure(words)| failed(format_args!("storage: {words}")))
}

/// Say why, in the log and in the report.
fn failed(why: core::fmt::Arguments) -> Ended {
    error!("{why}");
    println!("    # {why}");
    Ended::Fail
}

/// Mount, test, unmount: also after a failure, so that the file system is left clean.
fn with_files(disk: &mut Nvme, test: impl FnOnce(&mut Ext4<&mut Nvme>) -> Outcome) -> Outcome {
    let mut files = match Ext4::mount(disk, Access::ReadWrite, 0) {
        Ok(files) => files,
        Err(Error::NotExt4) if !DEMANDED.load(Ordering::Relaxed) => return Ok(Ended::Skip("there is no ext4 on the disk")),
        Err(error) => return Err(format!("ext4: {error}").into()),
    };
    let ended = test(&mut files);
    match (ended, files.unmount()) {
        (Err(failure), Err(error)) => Err(Failure(format!("{}; and unmounting: {error}", failure.0))),
        (ended, Ok(_)) => ended,
        (Ok(_), Err(error)) => Err(Failure(format!("unmounting: {error}"))),
    }
}

fn bench(name: &str, value: u64, unit: &str) {
    println!("    # bench {name}={value} {unit}");
}

fn identify(disk: &mut Nvme) -> Outcome {
    let bytes = disk.sectors().saturating_mul(disk.sector_size() as u64);
    info!("nvme: \"{}\", serial \"{}\", {} MiB in sectors of {} bytes, at most {} KiB a command", disk.model, disk.serial, bytes >> 20, disk.sector_size(), disk.most_bytes() >> 10);
    Ok(Ended::Pass)
}

/// What is on the disk is written over with itself, in sizes that take one page, two, a list of them, and several commands; also from
/// memory that begins inside a page or at an odd address.
fn write_and_read_back(disk: &mut Nvme) -> Outcome {
    let size = disk.sector_size();
    let most = (3 * disk.most_bytes()).min(disk.sectors() as usize / 2 * size);
    let first = disk.sectors() / 2;
    for bytes in [size, 4096, 8192, 5 * 4096, most] {
        let bytes = bytes.min(most);
        for offset in [0, 512, 1] {
            let mut memory = vec![0; bytes + offset];
            disk.read(first, &mut memory[offset..])?;
            disk.write(first, &memory[offset..])?;
            let mut again = vec![0xa5; bytes];
            disk.read(first, &mut again)?;
            check(again == memory[offset..], "what was written does not read the same")?;
        }
    }
    disk.flush()?;
    Ok(Ended::Pass)
}

/// Refused here, and, where a command gets there all the same, by the disk.
fn beyond_the_end(disk: &mut Nvme) -> Outcome {
    let mut sector = vec![0; disk.sector_size()];
    let end = disk.sectors();
    let answer = disk.read(end, &mut sector);
    check(matches!(answer, Err(BlockError::OutOfRange { .. })), "a read beyond the end was not refused")?;
    // The buffer lives until the command has ended.
    unsafe { disk.begin(false, end, sector.as_mut_ptr() as usize, sector.len())? };
    let ended = disk.end()?;
    check(ended.status != 0, "the disk itself reads beyond its end")?;
    disk.read(0, &mut sector)?; // and it still works
    Ok(Ended::Pass)
}

/// As many requests at a time as the queue takes, each of a sector that is compared with what a single read says.
fn deep_queue(disk: &mut Nvme) -> Outcome {
    let size = disk.sector_size();
    let count = disk.sectors().min(200) as usize;
    let mut single = vec![0; count * size];
    for (sector, bytes) in single.chunks_exact_mut(size).enumerate() {
        disk.read(sector as u64, bytes)?;
    }
    let mut deep = vec![0u8; count * size];
    let (mut begun, mut ended, mut most, mut refused) = (0, 0, 0, false);
    while ended < count {
        // `deep` lives until all have ended; after an error nothing is on the way any more.
        if begun < count && unsafe { disk.begin(false, begun as u64, deep.as_mut_ptr() as usize + begun * size, size)? }.is_some() {
            begun += 1;
            most = most.max(begun - ended);
            continue;
        }
        refused |= disk.end()?.status != 0;
        ended += 1;
    }
    check(!refused, "a read was refused")?;
    check(deep == single, "reads that overlap say something else than single ones")?;
    check(most > 32 || most == count, "fewer than 32 commands were on the way")?;
    Ok(Ended::Pass)
}

/// Ten reads, each of which must wake the sleeping processor: that its result is there is only looked at afterwards.
fn by_interrupts(disk: &mut Nvme) -> Outcome {
    const PATIENCE_NS: u64 = 5_000_000_000;
    let mut sector = vec![0; disk.sector_size()];
    // A message of an earlier command may have come since anybody slept.
    disk.read(0, &mut sector)?;
    interrupts::poll();
    for _ in 0..10 {
        let (before, end) = (interrupts_taken(), time::now_ns() + PATIENCE_NS);
        // `sector` lives until the command has ended.
        unsafe { disk.begin(false, 0, sector.as_mut_ptr() as usize, sector.len())? };
        while interrupts_taken() == before && time::now_ns() < end {
            disk.sleep(end - time::now_ns());
        }
        let woken = interrupts_taken() - before;
        check(disk.end()?.status == 0, "a read was refused")?;
        check(woken == 1, "a read did not end by one interrupt")?;
    }
    Ok(Ended::Pass)
}

fn fill_with_pattern(bytes: &mut [u8], offset: u64) {
    for (index, block) in bytes.chunks_mut(BLOCK).enumerate() {
        let word = (offset / BLOCK as u64 + index as u64).wrapping_mul(GOLDEN).to_le_bytes();
        for part in block.chunks_exact_mut(8) {
            part.copy_from_slice(&word);
        }
    }
}

fn has_pattern(bytes: &[u8], offset: u64) -> bool {
    bytes.chunks(BLOCK).enumerate().all(|(index, block)| {
        let word = (offset / BLOCK as u64 + index as u64).wrapping_mul(GOLDEN);
        block.chunks_exact(8).all(|part| part.try_into().is_ok_and(|part| u64::from_le_bytes(part) == word))
    })
}

fn remove_if_there(files: &mut Ext4<&mut Nvme>, path: &str) -> Result<(), Error> {
    match files.remove(path) {
        Err(Error::NotFound) => Ok(()),
        other => other,
    }
}

fn mib_per_second(bytes: u64, ns: u64) -> u64 {
    (u128::from(bytes) * 1_000_000_000 / u128::from(ns.max(1)) >> 20) as u64
}

fn file_and_back(files: &mut Ext4<&mut Nvme>) -> Outcome {
    remove_if_there(files, FILE)?;
    // A file's own tree takes a little beside it.
    let room = files.free_bytes() / 100 * 98 / BLOCK as u64 * BLOCK as u64;
    let size = (FILE_MIB.load(Ordering::Relaxed) << 20).min(room);
    let number = files.create(FILE)?;
    let mut buffer = vec![0; STEP];

    let start = time::now_ns();
    let mut at = 0;
    while at < size {
        let part = &mut buffer[..(size - at).min(STEP as u64) as usize];
        fill_with_pattern(part, at);
        files.write(number, at, part)?;
        at += part.len() as u64;
    }
    files.sync()?;
    let writing = time::now_ns() - start;

    let (mut reading, mut at) = (0, 0);
    while at < size {
        let start = time::now_ns();
        let length = files.read(number, at, &mut buffer)?;
        reading += time::now_ns() - start;
        check(length > 0, "the file is shorter than what was written")?;
        check(has_pattern(&buffer[..length], at), "the file does not read as it was written")?;
        buffer.fill(0);
        at += length as u64;
    }
    check(files.lookup(FILE)?.size() == size, "the file's size is not what was written")?;
    info!("ext4: {FILE} of {} MiB written and read back", size >> 20);
    bench("ext4_file", size >> 20, "MiB");
    bench("ext4_write", mib_per_second(size, writing), "MiB/s");
    bench("ext4_read", mib_per_second(size, reading), "MiB/s");
    Ok(Ended::Pass)
}

fn directories(files: &mut Ext4<&mut Nvme>) -> Outcome {
    const HOME: &str = "/quetzalcore.d";
    let free = files.free_bytes();
    files.make_directory(HOME)?;
    check(files.make_directory(HOME) == Err(Error::Exists), "a name was made twice")?;
    for index in 0..100 {
        files.create(&format!("{HOME}/file-{index}"))?;
        files.make_directory(&format!("{HOME}/directory-{index}"))?;
    }
    check(files.list(HOME)?.len() == 200, "a directory does not list what was made in it")?;
    check(files.remove_directory(HOME) == Err(Error::NotEmpty), "a directory was removed that is not empty")?;
    for index in 0..100 {
        files.remove(&format!("{HOME}/file-{index}"))?;
        files.remove_directory(&format!("{HOME}/directory-{index}"))?;
    }
    check(files.list(HOME)?.is_empty(), "a removed name is still listed")?;
    files.remove_directory(HOME)?;
    check(files.lookup(HOME).is_err(), "a removed directory is still found")?;
    // The root may have grown by a block.
    check(free - files.free_bytes() <= files.block_size() as u64, "removing gave not everything back")?;
    Ok(Ended::Pass)
}

/// A file of blocks with holes between them has an extent for each: the tree grows, and shrinks when the file is cut.
fn holes(files: &mut Ext4<&mut Nvme>) -> Outcome {
    const NAME: &str = "/quetzalcore.holes";
    const COUNT: u64 = 800;
    let size = files.block_size();
    remove_if_there(files, NAME)?;
    let number = files.create(NAME)?;
    let free = files.free_bytes();
    for index in (0..COUNT).rev() {
        let data = vec![index as u8; size];
        files.write(number, 2 * index * size as u64, &data)?;
    }
    let mut buffer = vec![0; 2 * size];
    for index in 0..COUNT - 1 {
        files.read(number, 2 * index * size as u64, &mut buffer)?;
        check(buffer[..size].iter().all(|&byte| byte == index as u8), "a block between holes reads wrong")?;
        check(buffer[size..].iter().all(|&byte| byte == 0), "a hole does not read as zeros")?;
    }
    files.truncate(number, 3 * size as u64 + 100)?;
    check(files.read(number, 2 * size as u64, &mut buffer)? == size + 100, "a cut file has the wrong size")?;
    files.truncate(number, 0)?;
    check(files.free_bytes() == free, "cutting gave not everything back")?;
    files.remove(NAME)?;
    Ok(Ended::Pass)
}

fn full_disk(files: &mut Ext4<&mut Nvme>) -> Outcome {
    const NAME: &str = "/quetzalcore.full";
    const MOST: u64 = 256 << 20;
    remove_if_there(files, NAME)?;
    if files.free_bytes() > MOST {
        return Ok(Ended::Skip("more than 256 MiB are free"));
    }
    let number = files.create(NAME)?;
    let free = files.free_bytes();
    let data: Vec<u8> = vec![0x5a; STEP];
    let mut at = 0;
    let error = loop {
        match files.write(number, at, &data) {
            Ok(()) => at += STEP as u64,
            Err(error) => break error,
        }
    };
    info!("ext4: after {} MiB: {error}", at >> 20);
    check(error == Error::NoSpace, "a full disk is not called one")?;
    check(files.free_bytes() < STEP as u64, "the disk is called full while there is room")?;
    files.remove(NAME)?;
    check(files.free_bytes() == free, "removing gave not everything back")?;
    Ok(Ended::Pass)
}

/// A part of the disk, in blocks of 4 KiB.
struct Area {
    first: u64,
    blocks: u64,
}

fn iops(disk: &mut Nvme, area: &Area, write: bool) -> Result<(), Failure> {
    let requests = REQUESTS.load(Ordering::Relaxed);
    let per_block = (BLOCK / disk.sector_size()) as u64;
    for (order, random) in [("random", true), ("sequential", false)] {
        for depth in [1usize, 32] {
            let memory = vec![0u32; depth * BLOCK / 4];
            let mut state = GOLDEN;
            // Which buffer each command on the way uses, and which are free.
            let mut users = [0; u16::BITS as usize * 4];
            let mut free: Vec<usize> = (0..depth).collect();
            let (mut begun, mut ended, mut refused) = (0, 0, false);
            let name = format!("nvme_{}_{order}_4k_qd{depth}", if write { "write" } else { "read" });
            println!("    # begin {name}");
            let start = time::now_ns();
            while ended < requests {
                if begun < requests
                    && let Some(buffer) = free.pop()
                {
                    let block = if random { next_random(&mut state) % area.blocks } else { begun % area.blocks };
                    let address = memory.as_ptr() as usize + buffer * BLOCK;
                    // `memory` lives until all have ended; after an error nothing is on the way any more.
                    if let Some(number) = unsafe { disk.begin(write, (area.first + block) * per_block, address, BLOCK)? } {
                        users[usize::from(number)] = buffer;
                        begun += 1;
                    } else {
                        free.push(buffer);
                    }
                    if begun < requests && !free.is_empty() {
                        continue;
                    }
                }
                let done = disk.end()?;
                refused |= done.status != 0;
                free.push(users[usize::from(done.number)]);
                ended += 1;
            }
            check(!refused, "the disk refused a request")?;
            let ns = time::now_ns() - start;
            bench(&name, requests * 1_000_000_000 / ns.max(1), "IOPS");
        }
    }
    Ok(())
}

/// xorshift64* (Vigna 2016): the same sequence in every run.
fn next_random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
}

fn read_iops(disk: &mut Nvme) -> Outcome {
    let blocks = disk.sectors() * disk.sector_size() as u64 / BLOCK as u64;
    check(blocks > 0, "the disk is smaller than a request")?;
    iops(disk, &Area { first: 0, blocks }, false)?;
    Ok(Ended::Pass)
}

/// Writes go straight to the disk, but only where a file of ours lies.
fn write_iops(disk: &mut Nvme) -> Outcome {
    const NAME: &str = "/quetzalcore.iops";
    const BYTES: u64 = 64 << 20;
    let mut files = match Ext4::mount(&mut *disk, Access::ReadWrite, 0) {
        Ok(files) => files,
        Err(Error::NotExt4) => return Ok(Ended::Skip("there is no ext4 with room for a file of ours")),
        Err(error) => return Err(format!("ext4: {error}").into()),
    };
    let made = make_area(&mut files, NAME, BYTES);
    files.unmount()?;
    let ended = made.and_then(|area| iops(disk, &area, true));
    let mut files = Ext4::mount(disk, Access::ReadWrite, 0)?;
    remove_if_there(&mut files, NAME)?;
    files.unmount()?;
    ended.map(|()| Ended::Pass)
}

fn make_area(files: &mut Ext4<&mut Nvme>, name: &str, bytes: u64) -> Result<Area, Failure> {
    remove_if_there(files, name)?;
    let bytes = bytes.min(files.free_bytes() / 2);
    let number = files.create(name)?;
    let data = vec![0; STEP];
    for at in (0..bytes).step_by(STEP) {
        files.write(number, at, &data)?;
    }
    let (block, count) = files.first_run(number)?;
    let size = files.block_size() as u64;
    let first = (block * size).div_ceil(BLOCK as u64);
    let end = (block + u64::from(count)) * size / BLOCK as u64;
    check(end > first, "the disk has no room for a file of ours")?;
    Ok(Area { first, blocks: end - first })
}
