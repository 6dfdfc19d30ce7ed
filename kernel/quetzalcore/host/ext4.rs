//! The kernel's ext4 driver as a program of the host, so that it can be tried on image files: `ext4 IMAGE COMMAND [ARGUMENT]...`.
//!
//! Every command mounts, acts and unmounts. Exit status 0; 1 with the driver's words on stderr; 2 for wrong usage.

#![allow(dead_code)] // some of the driver is used by the kernel alone

extern crate alloc;

#[path = "../src/block.rs"]
mod block;
#[path = "../src/ext4/mod.rs"]
mod ext4;

use block::{BlockDevice, BlockError};
use ext4::{Access, Ext4, Kind};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

const SECTOR: usize = 512;
/// What fuzzed images have as their block size.
const BLOW: usize = 1024;
/// Far more than any sound image of a few megabytes asks for.
const REQUESTS: u64 = 500_000;

struct Image {
    file: File,
    sectors: u64,
}

impl BlockDevice for Image {
    fn sector_size(&self) -> usize {
        SECTOR
    }
    fn sectors(&self) -> u64 {
        self.sectors
    }
    fn read(&mut self, first: u64, buffer: &mut [u8]) -> Result<(), BlockError> {
        self.check(first, buffer.len())?;
        self.file.read_exact_at(buffer, first * SECTOR as u64).map_err(|_| BlockError::Failed)
    }
    fn write(&mut self, first: u64, data: &[u8]) -> Result<(), BlockError> {
        self.check(first, data.len())?;
        self.file.write_all_at(data, first * SECTOR as u64).map_err(|_| BlockError::Failed)
    }
    fn flush(&mut self) -> Result<(), BlockError> {
        Ok(())
    }
}

/// An image in memory that answers only so many requests: a driver that walks in circles is found, not waited for.
struct Memory {
    bytes: Vec<u8>,
    requests_left: u64,
    /// Where single blocks were read.
    single: BTreeSet<usize>,
}

impl Memory {
    fn span(&mut self, first: u64, length: usize) -> Result<std::ops::Range<usize>, BlockError> {
        self.check(first, length)?;
        self.requests_left = self.requests_left.checked_sub(1).ok_or(BlockError::Failed)?;
        let start = first as usize * SECTOR;
        Ok(start..start + length)
    }
}

impl BlockDevice for Memory {
    fn sector_size(&self) -> usize {
        SECTOR
    }
    fn sectors(&self) -> u64 {
        (self.bytes.len() / SECTOR) as u64
    }
    fn read(&mut self, first: u64, buffer: &mut [u8]) -> Result<(), BlockError> {
        let span = self.span(first, buffer.len())?;
        if span.len() == BLOW {
            self.single.insert(span.start);
        }
        buffer.copy_from_slice(&self.bytes[span]);
        Ok(())
    }
    fn write(&mut self, first: u64, data: &[u8]) -> Result<(), BlockError> {
        let span = self.span(first, data.len())?;
        self.bytes[span].copy_from_slice(data);
        Ok(())
    }
    fn flush(&mut self) -> Result<(), BlockError> {
        Ok(())
    }
}

struct Random(u64);

impl Random {
    /// xorshift64*, Vigna 2016.
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }
}

type Answer = Result<(), Box<dyn std::error::Error>>;

fn said(error: ext4::Error) -> Box<dyn std::error::Error> {
    error.to_string().into()
}

fn list<D: BlockDevice>(fs: &mut Ext4<D>, path: &str) -> Answer {
    let entries = fs.list(path).map_err(said)?;
    for entry in entries {
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        println!("{} {name}", entry.inode);
    }
    Ok(())
}

fn put<D: BlockDevice>(fs: &mut Ext4<D>, path: &str, from: &str, step: usize, offset: u64) -> Answer {
    let mut source = File::open(from)?;
    let number = match fs.lookup(path) {
        Ok(inode) => inode.number,
        Err(ext4::Error::NotFound) => fs.create(path).map_err(said)?,
        Err(error) => return Err(said(error)),
    };
    let (mut buffer, mut at) = (vec![0; step], offset);
    loop {
        let length = source.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        fs.write(number, at, &buffer[..length]).map_err(said)?;
        at += length as u64;
    }
}

fn get<D: BlockDevice>(fs: &mut Ext4<D>, path: &str) -> Answer {
    let number = fs.lookup(path).map_err(said)?.number;
    let (mut buffer, mut at) = (vec![0; 1 << 20], 0);
    loop {
        let length = fs.read(number, at, &mut buffer).map_err(said)?;
        std::io::stdout().write_all(&buffer[..length])?;
        at += length as u64;
        if length < buffer.len() {
            return Ok(());
        }
    }
}

/// Write every second block of a file, from the last to the first, then every second of the rest: as many extents as blocks.
fn scatter<D: BlockDevice>(fs: &mut Ext4<D>, path: &str, blocks: u32) -> Answer {
    let number = fs.create(path).map_err(said)?;
    let size = fs.block_size() as u64;
    let evens = (0..blocks).step_by(4).rev();
    for block in evens.chain((2..blocks).step_by(4)) {
        let data = vec![(block % 251) as u8; size as usize];
        fs.write(number, u64::from(block) * size, &data).map_err(said)?;
    }
    Ok(())
}

/// Fill the disk until it says so; the names stay.
fn fill<D: BlockDevice>(fs: &mut Ext4<D>, path: &str) -> Answer {
    let number = fs.create(path).map_err(said)?;
    let (data, mut at) = (vec![0x5a; 100_000], 0);
    loop {
        fs.write(number, at, &data).map_err(said)?;
        at += data.len() as u64;
    }
}

fn many<D: BlockDevice>(fs: &mut Ext4<D>, path: &str, count: u32) -> Answer {
    fs.make_directory(path).map_err(said)?;
    for index in 0..count {
        fs.create(&format!("{path}/a-file-with-the-number-{index}")).map_err(said)?;
    }
    Ok(())
}

/// How often each answer was given.
type Tally = BTreeMap<String, u32>;

/// Do a bit of everything to whatever the image holds. Errors are fine: only a panic or a walk in circles is not.
fn exercise(memory: &mut Memory, tally: &mut Tally) -> ext4::Result<()> {
    fn count<T>(tally: &mut Tally, answer: ext4::Result<T>) -> Option<T> {
        let words = answer.as_ref().err().map_or("no error".into(), ToString::to_string);
        *tally.entry(words).or_default() += 1;
        answer.ok()
    }
    let mut fs = Ext4::mount(memory, Access::ReadWrite, 1)?;
    let mut paths = vec![String::from("/")];
    let mut seen = 0;
    let mut buffer = vec![7; 40_000];
    while let Some(path) = paths.pop() {
        let Some(entries) = count(tally, fs.list(&path)) else { continue };
        for entry in entries {
            seen += 1;
            if seen > 60 {
                break;
            }
            let Ok(name) = String::from_utf8(entry.name) else { continue };
            let below = format!("{path}/{name}");
            let Some(inode) = count(tally, fs.lookup(&below)) else { continue };
            if inode.kind() == Kind::Directory {
                if below.len() < 60 {
                    paths.push(below.clone());
                }
                count(tally, fs.create(&format!("{below}/new")));
                continue;
            }
            count(tally, fs.read(inode.number, 0, &mut buffer));
            count(tally, fs.read(inode.number, inode.size() / 2, &mut buffer));
            count(tally, fs.write(inode.number, inode.size(), &buffer[..5000]));
            count(tally, fs.write(inode.number, inode.size() / 3, &buffer[..100]));
            count(tally, fs.truncate(inode.number, inode.size() / 2));
            count(tally, fs.remove(&below));
        }
    }
    count(tally, fs.make_directory("/made"));
    if let Some(number) = count(tally, fs.create("/made/file")) {
        count(tally, fs.write(number, 70_000, &buffer));
    }
    count(tally, fs.remove("/made/file"));
    count(tally, fs.remove_directory("/made"));
    fs.unmount().map(drop)
}

/// Change bytes of an image, mostly of its metadata, and exercise the driver on the result; print how often it gave which answer.
fn fuzz(image: &str, seed: u64, rounds: u32) -> Answer {
    let pristine = std::fs::read(image)?;
    let mut tally = Tally::new();
    // The blocks that the driver asks for one at a time are those that it interprets.
    let mut memory = Memory { bytes: pristine.clone(), requests_left: REQUESTS, single: BTreeSet::new() };
    exercise(&mut memory, &mut tally).map_err(said)?;
    let metadata: Vec<usize> = std::mem::take(&mut memory.single).into_iter().filter(|&start| pristine[start..][..BLOW].iter().any(|&byte| byte != 0)).collect();
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for round in 0..rounds {
        memory.bytes.copy_from_slice(&pristine);
        memory.requests_left = REQUESTS;
        for _ in 0..=random.below(8) {
            // Half of the blows go to the beginning of a block, where headers are.
            let reach = if random.below(2) == 0 { 64 } else { BLOW };
            let block = metadata[random.below(metadata.len())];
            memory.bytes[block + random.below(reach)] = [0, 1, 0x7f, 0xff, random.below(256) as u8][random.below(5)];
        }
        match std::panic::catch_unwind(AssertUnwindSafe(|| exercise(&mut memory, &mut tally))) {
            Err(_) => return Err(format!("panic in round {round} of seed {seed}").into()),
            Ok(_) if memory.requests_left == 0 => return Err(format!("round {round} of seed {seed} walks in circles").into()),
            Ok(Err(error)) => *tally.entry(format!("as a whole: {error}")).or_default() += 1,
            Ok(Ok(())) => {}
        }
    }
    for (answer, count) in tally {
        println!("{count} {answer}");
    }
    Ok(())
}

fn run(arguments: &[&str]) -> Answer {
    let (image, command) = match arguments {
        [image, command @ ..] if !command.is_empty() => (*image, command),
        _ => return Err("usage: ext4 IMAGE COMMAND [ARGUMENT]...".into()),
    };
    if let ["fuzz", seed, rounds] = command {
        return fuzz(image, seed.parse()?, rounds.parse()?);
    }
    let writes = !matches!(command[0], "list" | "get");
    let file = OpenOptions::new().read(true).write(writes).open(image)?;
    let sectors = file.metadata()?.len() / SECTOR as u64;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() as u32;
    let access = if writes { Access::ReadWrite } else { Access::Read };
    let mut fs = Ext4::mount(Image { file, sectors }, access, now).map_err(said)?;
    if let ["abandon", path, from] = command {
        // As a kernel that dies: the file's data is there, and none of what was to be written back.
        return put(&mut fs, path, from, 1 << 20, 0);
    }
    let answer = match command {
        ["list", path] => list(&mut fs, path),
        ["get", path] => get(&mut fs, path),
        ["put", path, from] => put(&mut fs, path, from, 1 << 20, 0),
        ["put", path, from, step, offset] => put(&mut fs, path, from, step.parse()?, offset.parse()?),
        ["scatter", path, blocks] => scatter(&mut fs, path, blocks.parse()?),
        ["fill", path] => fill(&mut fs, path),
        ["many", path, count] => many(&mut fs, path, count.parse()?),
        ["mkdir", path] => fs.make_directory(path).map(drop).map_err(said),
        ["truncate", path, size] => fs.lookup(path).and_then(|inode| fs.truncate(inode.number, size.parse().unwrap_or(0))).map_err(said),
        ["rm", path] => fs.remove(path).map_err(said),
        ["rmdir", path] => fs.remove_directory(path).map_err(said),
        _ => Err("no such command, or wrong arguments".into()),
    };
    fs.unmount().map_err(said)?;
    answer
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
