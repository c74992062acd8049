//! weir beside its peers in one lab and one run. `--quick` does one short round, to see that it
//! all works; `--rounds N` and `--seconds N` change the rest.

use std::io::Write as _;

use anyhow::{Context as _, Result, bail};
use weir_bench::{
    machine,
    peers::{
        measure::Turn,
        mode::Mode,
        results::{Results, Sample},
        stage::Stage,
    },
};

struct Options {
    rounds: usize,
    seconds: u64,
}

fn main() -> Result<()> {
    let options = options(std::env::args().skip(1))?;
    println!("{}", machine::describe());
    println!("{} rounds of {} s a measurement", options.rounds, options.seconds);
    let stage = Stage::build()?;
    let results = measure(&stage, &options);
    // The lab's own complaint must not hide why nothing was measured.
    let finished = stage.finish();
    let results = results?;
    println!("{}\n{}", results.table(), results.verdicts());
    println!("load average at the end {}", machine::load_average());
    finished
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options { rounds: 7, seconds: 2 };
    while let Some(argument) = arguments.next() {
        let mut number = || -> Result<u64> {
            let value = arguments.next().with_context(|| format!("{argument} needs a number"))?;
            value.parse().with_context(|| format!("{argument} {value}"))
        };
        match argument.as_str() {
            "--quick" => options = Options { rounds: 1, seconds: 1 },
            "--rounds" => options.rounds = usize::try_from(number()?)?.max(1),
            "--seconds" => options.seconds = number()?.max(1),
            other => bail!("{other}: there are --quick, --rounds N and --seconds N"),
        }
    }
    Ok(options)
}

fn measure(stage: &Stage, options: &Options) -> Result<Results> {
    let mut results = Results::default();
    for number in 0..options.rounds {
        results.round(round(stage, number, options.seconds)?);
        eprint!("round {} of {}, load {}\r", number + 1, options.rounds, machine::load_average());
        std::io::stderr().flush()?;
    }
    eprintln!();
    Ok(results)
}

/// Every mode once in every turn, beginning with another one in each round.
fn round(stage: &Stage, number: usize, seconds: u64) -> Result<Vec<Sample>> {
    let client = stage.lab.client("c1");
    let mut samples = Vec::new();
    for turn in Turn::ALL {
        let mut modes = Mode::ALL;
        modes.rotate_left(number % Mode::ALL.len());
        for mode in modes.into_iter().filter(|mode| mode.does(turn.wire())) {
            samples.extend(turn.run(client, mode, seconds)?);
        }
    }
    Ok(samples)
}
