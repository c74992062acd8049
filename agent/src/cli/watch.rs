//! `--watch`: the same answer again and again.

use std::{
    io::{IsTerminal, stdout},
    thread,
    time::Duration,
};

use clap::Args;
use serde::Serialize;

use super::{
    Failed, Format, OutputArgs, parse_time,
    table::{json, print},
};
use crate::health::Condition;

#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    /// Show it again and again, every 2s or as often as is said, until Ctrl-C; JSON is one line each
    #[arg(
        short,
        long,
        value_name = "TIME",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "2s",
        value_parser = parse_time
    )]
    watch: Option<Duration>,
}

/// An answer as it is printed, and what follows for the exit code.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) text: String,
    pub(super) condition: Condition,
}

impl Shown {
    /// The answer in the wanted form; `compact`: JSON is one line.
    pub(super) fn new(
        output: &OutputArgs,
        compact: bool,
        answer: &impl Serialize,
        condition: Condition,
        table: impl FnOnce() -> String,
    ) -> Result<Self, Failed> {
        let text = match output.output {
            Format::Table => table(),
            Format::Json => json(answer, compact)?,
        };
        Ok(Self { text, condition })
    }

    /// Prints it.
    pub(super) fn print(self) -> Result<Condition, Failed> {
        print(&self.text);
        Ok(self.condition)
    }
}

impl WatchArgs {
    /// Whether the answer is shown more than once.
    pub(super) fn is_on(&self) -> bool {
        self.watch.is_some()
    }

    /// Shows an answer, once or for ever. What fails while it is watched is shown, too: an agent that
    /// is started anew comes back.
    pub(super) fn show(
        &self,
        mut answer: impl FnMut() -> Result<Shown, Failed>,
    ) -> Result<Condition, Failed> {
        let Some(pause) = self.watch else {
            return answer()?.print();
        };
        loop {
            let text = match answer() {
                Ok(shown) => shown.text,
                Err(failed) => format!("weir: {failed}\n"),
            };
            // Where there is a screen, the answer takes the place of the one before.
            let clear = if stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
            if !print(&format!("{clear}{text}")) {
                return Ok(Condition::Ok);
            }
            thread::sleep(pause);
        }
    }
}
