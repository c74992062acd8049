//! Reading TOML by hand, so that one pass finds every mistake and each names the file, the line,
//! the key, the value and the way out. `weir.toml` and `mesh.toml` are both read this way.

mod fault;
mod suggest;
mod value;

pub use fault::{Fault, Findings, Place};
pub use suggest::{missing, nearest};
pub use value::{Table, Value, parse_duration};

use std::ops::Range;

use toml::{Spanned, de::DeTable};

/// Parses a piece of a document and notes every syntax error in `findings`. `None` when there was
/// one: what a parser guesses after an error only leads to complaints that mislead.
pub fn parse_piece<'i>(
    findings: &Findings<'i>,
    piece: Range<usize>,
) -> Option<Spanned<DeTable<'i>>> {
    let (table, errors) = DeTable::parse_recoverable(&findings.text()[piece.clone()]);
    if errors.is_empty() {
        return Some(table);
    }
    for error in &errors {
        let at = piece.start + error.span().map_or(0, |span| span.start);
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        findings.note_syntax(at, &message);
    }
    None
}
