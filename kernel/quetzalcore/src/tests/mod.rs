//! Self-tests: each a name that `test=` knows, reported in KTAP (https://docs.kernel.org/dev-tools/ktap.html).

mod boot;
mod memory;
mod pci;
#[cfg(target_arch = "x86_64")]
pub mod storage;

use crate::exit::Outcome;
use crate::memory::leak::Mark;

/// What became of a test.
pub enum Ended {
    Pass,
    Fail,
    Skip(&'static str),
}

/// Name, test.
type Test = (&'static str, fn() -> Ended);

const GROUPS: &[(&str, &[Test])] = &[
    ("boot", boot::TESTS),
    ("memory", memory::TESTS),
    ("pci", pci::TESTS),
    #[cfg(target_arch = "x86_64")]
    ("nvme", storage::NVME),
    #[cfg(target_arch = "x86_64")]
    ("ext4", storage::EXT4),
    #[cfg(target_arch = "x86_64")]
    ("iops", storage::IOPS),
];

/// The test fails, and says why, unless the condition holds.
macro_rules! check {
    ($condition:expr, $($why:tt)*) => {
        if !$condition {
            println!("    # {}", format_args!($($why)*));
            return $crate::tests::Ended::Fail;
        }
    };
}
use check;

/// Run the groups named in `wanted`, separated by commas, or `all`.
#[inline(never)]
pub fn run(wanted: &str) -> Outcome {
    println!("KTAP version 1");
    let mut outcome = Outcome::Success;
    let mut report = |number: usize, name: &str, ended: Ended, indent: &str| match ended {
        Ended::Pass => println!("{indent}ok {number} {name}"),
        Ended::Skip(why) => println!("{indent}ok {number} {name} # SKIP {why}"),
        Ended::Fail => {
            println!("{indent}not ok {number} {name}");
            outcome = Outcome::Failure;
        }
    };
    if wanted == "all" {
        println!("1..{}", GROUPS.len());
        for (number, (name, tests)) in GROUPS.iter().enumerate() {
            let ended = group(name, tests, &mut report);
            report(number + 1, name, ended, "");
        }
        return outcome;
    }
    println!("1..{}", wanted.split(',').count());
    for (number, name) in wanted.split(',').enumerate() {
        let ended = match GROUPS.iter().find(|(known, _)| *known == name) {
            Some((_, tests)) => group(name, tests, &mut report),
            None => unknown(name),
        };
        report(number + 1, name, ended, "");
    }
    outcome
}

/// Every test of a group; it fails if one of them does, or if they leave memory behind.
fn group(name: &str, tests: &[Test], report: &mut impl FnMut(usize, &str, Ended, &str)) -> Ended {
    println!("    KTAP version 1");
    println!("    # Subtest: {name}");
    println!("    1..{}", tests.len());
    let mut all = true;
    for (number, (test, body)) in tests.iter().enumerate() {
        let before = Mark::now();
        let mut ended = body();
        if !before.check() {
            ended = Ended::Fail;
        }
        all &= !matches!(ended, Ended::Fail);
        report(number + 1, test, ended, "    ");
    }
    if all { Ended::Pass } else { Ended::Fail }
}

fn unknown(name: &str) -> Ended {
    error!("test: there is no test \"{name}\"; there are{}", Names);
    Ended::Fail
}

struct Names;

impl core::fmt::Display for Names {
    fn fmt(&self, f: &mut core::fmt::Formatter) -> core::fmt::Result {
        GROUPS.iter().try_for_each(|(name, _)| write!(f, " {name}"))?;
        f.write_str(" all")
    }
}
