//! Cuts a long document into pieces that are TOML on their own.
//!
//! The tree that the parser builds takes some twenty times the room of the text. A piece a service
//! keeps the agent small at 10,000 services, and a syntax error in one service does not keep the
//! mistakes in the others from being found.

use std::ops::Range;

use toml_parser::{
    Source,
    lexer::{Token, TokenKind},
};
use xxhash_rust::xxh3::xxh3_128;

/// Stands for a text that need not be kept: no two texts of one mesh will ever have the same, since
/// that would be a one in 2^128 event. Whoever could bring it about may write the file anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Digest(u128);

impl Digest {
    pub(super) fn of(text: &str) -> Self {
        Self(xxh3_128(text.as_bytes()))
    }
}

/// The pieces of `text`, in order and without gaps: the top, then one for each `[[service]]`.
pub(super) fn pieces(text: &str) -> Vec<Range<usize>> {
    let starts: Vec<usize> = [0].into_iter().chain(headers(text)).collect();
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect()
}

/// Where the piece ends that begins at `start`. The first piece begins at no header, each other one
/// at its own.
pub(super) fn piece_end(text: &str, start: usize, first: bool) -> usize {
    let own = usize::from(!first);
    headers(&text[start..]).nth(own).map_or(text.len(), |header| start + header)
}

/// Whether a piece begins right here, given that a line does.
pub(super) fn begins_piece(text: &str) -> bool {
    // As nearly everybody writes it.
    if text.starts_with("[[service]]") {
        return true;
    }
    let tokens = Source::new(text).lex().take(2 * HEADER.len());
    let line = tokens.take_while(|token| token.kind() != TokenKind::Newline);
    let line: Vec<Token> =
        line.filter(|token| token.kind() != TokenKind::Whitespace).take(HEADER.len()).collect();
    text.starts_with('[') && is_header(&line, text)
}

/// Where the headers of services begin in a text that begins with a line.
fn headers(text: &str) -> impl Iterator<Item = usize> {
    let mut line: Vec<Token> = Vec::new();
    Source::new(text).lex().filter_map(move |token| {
        match token.kind() {
            TokenKind::Whitespace => {}
            TokenKind::Newline => line.clear(),
            // Longer than any header: whatever it is, its start has been looked at.
            _ if line.len() > HEADER.len() => {}
            _ => {
                line.push(token);
                return is_header(&line, text).then(|| line[0].span().start());
            }
        }
        None
    })
}

const HEADER: [TokenKind; 5] = [
    TokenKind::LeftSquareBracket,
    TokenKind::LeftSquareBracket,
    TokenKind::Atom,
    TokenKind::RightSquareBracket,
    TokenKind::RightSquareBracket,
];

/// A bare `service` between double brackets at the start of a line can be nothing but a header: as
/// a value in a list it would need quotes.
fn is_header(line: &[Token], text: &str) -> bool {
    line.len() == HEADER.len()
        && line.iter().zip(HEADER).all(|(token, kind)| token.kind() == kind)
        && &text[line[2].span().start()..line[2].span().end()] == "service"
}

#[cfg(test)]
mod tests {
    use super::pieces;

    fn cut(text: &str) -> Vec<&str> {
        pieces(text).into_iter().map(|piece| &text[piece]).collect()
    }

    #[test]
    fn each_service_is_a_piece_and_takes_its_tasks_along() {
        let text =
            "[[node]]\nname = 1\n[[service]]\nx = 1\n[[service.task]]\n  [[ service ]]\ny = 2";
        assert_eq!(
            cut(text),
            [
                "[[node]]\nname = 1\n",
                "[[service]]\nx = 1\n[[service.task]]\n  ",
                "[[ service ]]\ny = 2"
            ]
        );
    }

    #[test]
    fn headers_within_strings_and_comments_cut_nothing() {
        let text = "a = '''\n[[service]]\n'''\n# [[service]]\nb = \"\"\"\n[[service]]\"\"\"\n";
        assert_eq!(cut(text), [text]);
    }

    #[test]
    fn nothing_is_one_empty_piece() {
        assert_eq!(cut(""), [""]);
    }
}
