//! `weir config check`: all mistakes of a file at once, with their lines and the way out.

use std::{fs, path::Path};

use schemars::JsonSchema;
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

#[derive(Serialize, JsonSchema)]
pub(super) struct Verdict<'a> {
    file: String,
    kind: &'static str,
    ok: bool,
    found: String,
    faults: Vec<Flat<'a>>,
}

/// A fault with its place spelled out.
#[derive(Serialize, JsonSchema)]
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
    let kind = kind.unwrap_or_else(|| recognise(path, &text));
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
/// lines have to do. Where there are none that say anything, the name decides: nothing at all is a
/// good configuration, but no desired state.
fn recognise(path: &Path, text: &str) -> FileKind {
    let says_something = |line: &str| !line.trim().is_empty() && !line.trim().starts_with('#');
    if !text.lines().any(says_something) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        return if name.contains("mesh") { FileKind::Mesh } else { FileKind::Agent };
    }
    let of_mesh = |line: &str| {
        let line: String = line.chars().filter(|c| !c.is_whitespace()).collect();
        ["[[node", "[[service", "service=", "node="].iter().any(|start| line.starts_with(start))
    };
    if text.lines().any(of_mesh) { FileKind::Mesh } else { FileKind::Agent }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_recognised_by_what_it_lists_and_an_empty_one_by_its_name() {
        let kind = |name: &str, text: &str| recognise(Path::new(name), text);
        assert_eq!(kind("a.toml", "[[ service ]]\nname ="), FileKind::Mesh);
        assert_eq!(kind("mesh.toml", "[node]\nname = \"n1\""), FileKind::Agent);
        assert_eq!(kind("mesh.toml", "\n# nothing yet\n"), FileKind::Mesh);
        assert_eq!(kind("/etc/weir/weir.toml", ""), FileKind::Agent);
    }
}
