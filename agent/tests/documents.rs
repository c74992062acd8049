//! What the documents tell a reader to type is understood by the command line.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Parser as _, error::ErrorKind};
use weir::cli::Cli;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every document for users: README and docs/.
fn documents() -> Vec<(String, String)> {
    let docs = fs::read_dir(repository().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let docs = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let all = docs.chain([repository().join("README.md")]);
    all.map(|path| (path.display().to_string(), fs::read_to_string(&path).unwrap())).collect()
}

/// The lines of fenced blocks of shell commands, which are what to type.
fn typed(text: &str) -> Vec<&str> {
    let mut inside = None;
    let mut lines = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("```"), inside) {
            (Some(language), None) => inside = Some(language == "sh"),
            (Some(_), Some(_)) => inside = None,
            (None, Some(true)) => lines.push(line),
            (None, _) => {}
        }
    }
    lines
}

/// `weir` and its arguments, if that is what is typed: without comments, and without what a shell does.
fn arguments(line: &str) -> Option<Vec<&str>> {
    let command = line.split(['#', '|', '&', ';', '>']).next()?;
    let words: Vec<&str> = command.split_whitespace().collect();
    (words.first() == Some(&"weir")).then_some(words)
}

#[test]
fn every_command_in_the_documents_is_one_that_weir_knows() {
    let mut seen = 0;
    for (path, text) in documents() {
        for words in typed(&text).into_iter().filter_map(arguments) {
            seen += 1;
            let understood = match Cli::try_parse_from(&words) {
                Ok(_) => true,
                Err(error) => {
                    matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
                }
            };
            assert!(understood, "{path}: {}", words.join(" "));
        }
    }
    assert!(seen > 20, "the documents were not understood: {seen} commands");
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    for (path, text) in documents() {
        let directory = Path::new(&path).parent().unwrap();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.starts_with("http")) {
            let (file, section) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { PathBuf::from(&path) } else { directory.join(file) };
            assert!(file.exists(), "{path}: {target}");
            if !section.is_empty() {
                let text = fs::read_to_string(&file).unwrap();
                let headings = text.lines().filter(|line| line.starts_with('#')).map(anchor);
                assert!(headings.into_iter().any(|it| it == section), "{path}: {target}");
            }
        }
    }
}

/// As GitHub makes it of a heading.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
