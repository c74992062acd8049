//! What the documents show: blocks of commands and of files, which tests take from there to run them.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::swarm::repository;

/// A fenced block of a document.
#[derive(Clone, Debug)]
pub struct Block {
    /// Where it is, below the repository.
    pub document: String,
    /// What it is written in: the word after the fence.
    pub language: String,
    /// What is in it.
    pub text: String,
}

/// All blocks of README.md and of what is in docs/, in the order in which they are there.
///
/// # Errors
/// When a document cannot be read.
pub fn blocks() -> Result<Vec<Block>> {
    let mut documents = vec![PathBuf::from("README.md")];
    for entry in fs::read_dir(repository("docs"))? {
        let name = PathBuf::from("docs").join(entry?.file_name());
        documents.extend(name.extension().is_some_and(|kind| kind == "md").then_some(name));
    }
    documents.sort();
    let mut blocks = Vec::new();
    for document in documents {
        let document = document.display().to_string();
        let text = fs::read_to_string(repository(&document)).context(document.clone())?;
        let mut begun: Option<Block> = None;
        for line in text.lines() {
            match (line.strip_prefix("```"), &mut begun) {
                (Some(language), None) => {
                    let (document, language) = (document.clone(), language.to_owned());
                    begun = Some(Block { document, language, text: String::new() });
                }
                (Some(_), Some(_)) => blocks.extend(begun.take()),
                (None, Some(block)) => block.text.extend([line, "\n"]),
                (None, None) => {}
            }
        }
    }
    Ok(blocks)
}

/// The text of the block of a document that begins with this.
///
/// # Errors
/// When there is none, or more than one.
pub fn block(document: &str, beginning: &str) -> Result<String> {
    let all = blocks()?.into_iter();
    let mut found = all
        .filter(|it| it.document == document && it.text.starts_with(beginning))
        .collect::<Vec<_>>();
    let one = found.pop().filter(|_| found.is_empty());
    let one = one.with_context(|| format!("{document}: no block, or two, with {beginning:?}"))?;
    Ok(one.text)
}

/// The commands of a block, without comments; one that goes on in the next line is one.
pub fn commands(text: &str) -> Vec<String> {
    let text = text.replace("\\\n", " ");
    let lines = text.lines().map(|line| line.split(" #").next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}
