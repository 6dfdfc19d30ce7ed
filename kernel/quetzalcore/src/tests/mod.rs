//! Self-tests: each a name that `test=` knows, reported in KTAP (https://docs.kernel.org/dev-tools/ktap.html).

use crate::exit::Outcome;

/// What became of a test.
pub enum Ended {
    Pass,
    #[allow(dead_code)]
    Fail,
    #[allow(dead_code)]
    Skip(&'static str),
}

/// Name, test.
type Test = (&'static str, fn() -> Ended);

const GROUPS: &[(&str, &[Test])] = &[("boot", &[("console", || Ended::Pass)])];

/// Run the groups named in `wanted`, separated by commas, or `all`.
pub fn run(wanted: &str) -> Outcome {
    println!("KTAP version 1");
    println!("1..{}", wanted.split(',').count());
    let mut outcome = Outcome::Success;
    for (number, name) in wanted.split(',').enumerate() {
        let Some((_, tests)) = GROUPS.iter().find(|(known, _)| *known == name) else {
            error!("test: there is no test \"{name}\"");
            println!("not ok {} {name} # unknown test", number + 1);
            outcome = Outcome::Failure;
            continue;
        };
        println!("    KTAP version 1");
        println!("    1..{}", tests.len());
        let mut all = true;
        for (number, (test, body)) in tests.iter().enumerate() {
            match body() {
                Ended::Pass => println!("    ok {} {test}", number + 1),
                Ended::Skip(why) => println!("    ok {} {test} # SKIP {why}", number + 1),
                Ended::Fail => {
                    println!("    not ok {} {test}", number + 1);
                    all = false;
                }
            }
        }
        println!("{} {} {name}", if all { "ok" } else { "not ok" }, number + 1);
        if !all {
            outcome = Outcome::Failure;
        }
    }
    outcome
}
