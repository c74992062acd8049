//! `weir config check`: all mistakes of a file at once, with their lines and the way out.

use std::{fs, path::Path};

use serde::Serialize;
use weir_mesh::Timeouts;

use super::{
    Failed, FileKind, Format, OutputArgs,
    table::{print, print_json},
};
use crate::{
    config::{Overrides, Settings},
    document::{Fault, Place},
    health::Condition,
    source::file,
};

#[derive(Serialize)]
struct Verdict<'a> {
    file: String,
    kind: &'static str,
    ok: bool,
    found: String,
    faults: Vec<Flat<'a>>,
}

/// A fault with its place spelled out.
#[derive(Serialize)]
struct Flat<'a> {
    line: Option<usize>,
    key: &'a str,
    value: Option<&'a str>,
    problem: &'a str,
    remedy: &'a str,
}

pub(super) fn file(
    path: &Path,
    kind: Option<FileKind>,
    output: &OutputArgs,
) -> Result<Condition, Failed> {
    let text = fs::read_to_string(path).map_err(|error| {
        format!(
            "{} cannot be read: {error}; give the path of a weir.toml or mesh.toml",
            path.display()
        )
    })?;
    let kind = kind.unwrap_or_else(|| recognise(&text));
    let checked = match kind {
        FileKind::Agent => Settings::read(path, &text, &Overrides::default())
            .map(|_| "an agent's configuration".into()),
        FileKind::Mesh => {
            file::parse(&path.display().to_string(), &text, Timeouts::default()).map(|desired| {
                let tasks: usize = desired.services.values().map(|one| one.tasks.len()).sum();
                let (nodes, services) = (desired.nodes.len(), desired.services.len());
                format!("{nodes} nodes, {services} services, {tasks} tasks")
            })
        }
    };
    let (found, faults) = match checked {
        Ok(found) => (found, Vec::new()),
        Err(faults) => (String::new(), faults),
    };
    if output.output == Format::Json {
        print_json(&verdict(path, kind, found, &faults))?;
    } else {
        print(&text_of(path, &found, &faults));
    }
    Ok(if faults.is_empty() { Condition::Ok } else { Condition::Failed })
}

fn text_of(path: &Path, found: &str, faults: &[Fault]) -> String {
    if faults.is_empty() {
        return format!("{}: ok ({found})\n", path.display());
    }
    let mut text: String = faults.iter().map(|fault| format!("{fault}\n")).collect();
    let mistakes = if faults.len() == 1 { "mistake" } else { "mistakes" };
    text.push_str(&format!("{}: {} {mistakes}\n", path.display(), faults.len()));
    text
}

fn verdict<'a>(path: &Path, kind: FileKind, found: String, faults: &'a [Fault]) -> Verdict<'a> {
    let flat = |fault: &'a Fault| Flat {
        line: match fault.place {
            Place::Line { line, .. } => Some(line),
            _ => None,
        },
        key: &fault.key,
        value: fault.value.as_deref(),
        problem: &fault.problem,
        remedy: &fault.remedy,
    };
    Verdict {
        file: path.display().to_string(),
        kind: match kind {
            FileKind::Agent => "agent",
            FileKind::Mesh => "mesh",
        },
        ok: faults.is_empty(),
        found,
        faults: faults.iter().map(flat).collect(),
    }
}

/// Only a desired state lists nodes and services; the file may be too broken to parse, so the
/// lines have to do.
fn recognise(text: &str) -> FileKind {
    let of_mesh = |line: &str| {
        let line: String = line.chars().filter(|c| !c.is_whitespace()).collect();
        ["[[node", "[[service", "service=", "node="].iter().any(|start| line.starts_with(start))
    };
    if text.lines().any(of_mesh) { FileKind::Mesh } else { FileKind::Agent }
}
