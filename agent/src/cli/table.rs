//! Columns that line up, and colours where a terminal shows them.

use std::io::{IsTerminal, Write};

use serde::Serialize;

use super::Failed;
use crate::health::Condition;

/// Rows of cells; the last cell of a row may be of any length.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn row<const N: usize>(&mut self, cells: [&str; N]) {
        self.rows.push(cells.map(plain).into());
    }

    /// The text, columns two blanks apart.
    pub(super) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter(|row| column + 1 < row.len());
            cells.map(|row| row[column].chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:width$}  "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Without what a terminal obeys: names and labels are other people's. The colours of [`mark`] are ours.
fn plain(cell: &str) -> String {
    let marks = [Condition::Ok, Condition::Degraded, Condition::Failed];
    if !cell.contains(char::is_control) || marks.iter().any(|it| mark(*it) == cell) {
        return cell.to_owned();
    }
    let shown = |c: char| match c {
        '\n' | '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    cell.chars().map(shown).collect()
}

/// Prints, without a complaint when the reader has gone (`weir services | head`); answers whether
/// somebody still reads.
pub(super) fn print(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

pub(super) fn print_json(value: &impl Serialize) -> Result<(), Failed> {
    print(&json(value, false)?);
    Ok(())
}

/// As JSON: one line of it, or easy on the eyes.
pub(super) fn json(value: &impl Serialize, compact: bool) -> Result<String, Failed> {
    let text = match compact {
        true => serde_json::to_string(value),
        false => serde_json::to_string_pretty(value),
    };
    text.map(|text| text + "\n").map_err(|error| error.to_string())
}

/// A tick, an exclamation mark or a cross.
pub(super) fn mark(condition: Condition) -> String {
    let (mark, colour) = match condition {
        Condition::Ok => ("✓", 32),
        Condition::Degraded => ("!", 33),
        Condition::Failed => ("✗", 31),
    };
    if std::io::stdout().is_terminal() {
        format!("\x1b[{colour}m{mark}\x1b[0m")
    } else {
        mark.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let mut table = Table::default();
        table.row(["a", "long cell", "x"]);
        table.row(["bbb", "c", ""]);
        table.row(["one cell that may be as long as it likes"]);
        let text = "a    long cell  x\nbbb  c\none cell that may be as long as it likes\n";
        assert_eq!(table.text(), text);
    }
}
