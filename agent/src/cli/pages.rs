//! `weir completion` and `weir man`: what shells and man(1) want to know, made from the definitions of the
//! commands themselves.

use std::{fs, path::Path};

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, Failed, table::print};
use crate::health::Condition;

/// Prints the completion of a shell.
pub(super) fn completion(shell: Shell) -> Result<Condition, Failed> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "weir", &mut script);
    print(&String::from_utf8(script).map_err(|error| error.to_string())?);
    Ok(Condition::Ok)
}

/// Writes a page for each command into a directory.
pub(super) fn manual(directory: &Path) -> Result<Condition, Failed> {
    let shown = directory.display();
    let failed = |error| format!("cannot write the pages into {shown}: {error}");
    fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), directory).map_err(failed)?;
    print(&format!("man pages of all commands are in {shown}: man -l {shown}/weir.1\n"));
    Ok(Condition::Ok)
}
