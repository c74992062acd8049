//! `weir schema`: what a program may expect of `-o json`, command by command.

use clap::Args;
use schemars::{JsonSchema, Schema, generate::SchemaSettings};

use super::{
    Failed, check, config_check, lifecycle, monitor, show, state_diff,
    table::{print, print_json},
};
use crate::{
    api::{Flows, Killed, Nodes, Rates, Services, StateDump, Status, Tasks, Trace},
    dns::view::{CacheView, QueryView, RecordsView, UpstreamsView},
    drain::Drained,
    health::Condition,
};

#[derive(Debug, Args)]
pub(super) struct SchemaArgs {
    /// The command, such as "flows kill" [default: list those that print JSON]
    #[arg(value_name = "COMMAND", num_args = 0..)]
    command: Vec<String>,
}

/// Makes a schema.
type Make = fn() -> Schema;

/// Every command that prints JSON, and of what kind it is.
const COMMANDS: [(&str, Make); 26] = [
    ("check", of::<Vec<check::Line>>),
    ("config check", of::<config_check::Verdict<'_>>),
    ("dns cache", of::<CacheView>),
    ("dns query", of::<QueryView>),
    ("dns records", of::<RecordsView>),
    ("dns upstreams", of::<UpstreamsView>),
    ("drain list", of::<Drained>),
    ("drain node", of::<Drained>),
    ("drain task", of::<Drained>),
    ("flows", of::<Flows>),
    ("flows kill", of::<Killed>),
    ("monitor", of::<monitor::Line<'_>>),
    ("nodes", of::<Nodes>),
    ("services", of::<Services>),
    ("services --rate", of::<Rates>),
    ("state diff", of::<state_diff::Answer>),
    ("state dump", of::<StateDump>),
    ("status", of::<Status>),
    ("tasks", of::<Tasks>),
    ("trace", of::<Trace>),
    ("undrain all", of::<Drained>),
    ("undrain node", of::<Drained>),
    ("undrain task", of::<Drained>),
    ("uninstall", of::<lifecycle::Removal>),
    ("upgrade", of::<Status>),
    ("version", of::<show::Version>),
];

/// As it is printed: a field that may be left out is not required.
fn of<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>()
}

pub(super) fn schema(args: &SchemaArgs) -> Result<Condition, Failed> {
    let wanted = args.command.join(" ");
    if wanted.is_empty() {
        print(&COMMANDS.map(|(name, _)| format!("{name}\n")).concat());
        return Ok(Condition::Ok);
    }
    let found = COMMANDS.iter().find(|(name, _)| *name == wanted);
    let (_, schema) = found.ok_or_else(|| {
        format!("no command \"{wanted}\" prints JSON; weir schema lists those that do")
    })?;
    print_json(&schema())?;
    Ok(Condition::Ok)
}
