//! The userspace proxy beside its peers; see `weir_bench::proxies`. `--rounds N` and `--seconds N` change how
//! much is done.

use anyhow::{Context as _, Result, bail};
use weir_bench::{
    machine,
    proxies::{
        copy,
        stage::{COPY, Stage},
        table,
    },
};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (mut rounds, mut seconds) = (5, 2);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{argument} needs a value"))?;
        match argument.as_str() {
            "--rounds" => rounds = value.parse()?,
            "--seconds" => seconds = value.parse()?,
            COPY => return copy::serve(&value, arguments),
            other => bail!("{other}: there are --rounds N and --seconds N"),
        }
    }
    println!("{}", machine::describe());
    println!("{rounds} rounds of {seconds} s a measurement");
    let stage = Stage::build()?;
    let results = stage.measure(rounds, seconds);
    // The lab's own complaint must not hide why nothing was measured.
    let finished = stage.finish();
    println!("{}", table(&results?));
    println!("load average at the end {}", machine::load_average());
    finished
}
