//! Takes out of a text what lets somebody in: private keys, tokens, passwords. What only looks like that is
//! taken out, too; a report can be read without it.

const KEY_BEGIN: &str = "-----BEGIN ";
const KEY_END: &str = "-----END ";
const PRIVATE: &str = "PRIVATE KEY-----";
/// Of `docker swarm join`.
const JOIN_TOKEN: &str = "SWMTKN-";
const MASK: &str = "[masked]";

/// What follows one of these is nobody's business: `password = …`, `"token": "…"`, `Authorization: …`.
const NAMES: [&str; 13] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "credential",
    "authorization",
    "apikey",
    "api_key",
    "api-key",
    "private_key",
    "private-key",
    "pwd",
];

/// The text without secrets.
pub(super) fn masked(text: &str) -> String {
    let text = without_keys(text);
    let text = without_join_tokens(&text);
    let mut out = String::with_capacity(text.len());
    let mut until = None;
    for line in text.split_inclusive('\n') {
        let mut rest = line;
        if let Some(end) = until {
            // Still within a value that began on a line before.
            let Some(at) = line.find(end) else { continue };
            rest = &line[at..];
        }
        let (line, open) = without_values(rest);
        until = open;
        out.push_str(&without_users(&line));
    }
    out
}

/// PEM, also with its line ends written as `\n`.
fn without_keys(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    // The end of a key whose beginning is cut off: nothing before it is kept.
    if let Some(end) = text.find(KEY_END)
        && text.find(KEY_BEGIN).is_none_or(|begin| end < begin)
        && let label = &text[end + KEY_END.len()..]
        && let Some(dashes) = label.find("-----")
        && label[..dashes + 5].ends_with(PRIVATE)
    {
        out.push_str(MASK);
        rest = &label[dashes + 5..];
    }
    while let Some(begin) = rest.find(KEY_BEGIN) {
        let (before, block) = rest.split_at(begin);
        out.push_str(before);
        let label = &block[KEY_BEGIN.len()..];
        let private = label.find("-----").is_some_and(|end| label[..end + 5].ends_with(PRIVATE));
        if !private {
            out.push_str(KEY_BEGIN);
            rest = label;
            continue;
        }
        out.push_str(MASK);
        // A key that is cut off has no end: nothing after it is kept.
        let end = block.find(KEY_END).map_or("", |end| &block[end + KEY_END.len()..]);
        rest = end.find("-----").map_or("", |dashes| &end[dashes + 5..]);
    }
    out + rest
}

fn without_join_tokens(text: &str) -> String {
    let mut parts = text.split(JOIN_TOKEN);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(MASK);
        out.push_str(part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '-'));
    }
    out
}

/// A line without what is assigned to names that say what it is; and what ends the last of it, if that is on
/// another line.
fn without_values(line: &str) -> (String, Option<&'static str>) {
    // Bytes of ASCII stay where they are.
    let lower = line.to_ascii_lowercase();
    let mut out = String::with_capacity(line.len());
    let mut at = 0;
    while let Some((begin, end)) = next_name(&lower, at) {
        let Some(start) = value_of(line, begin, end) else {
            out.push_str(&line[at..end]);
            at = end;
            continue;
        };
        let whole_line = lower[..end].ends_with("authorization");
        let (skipped, length, open) = extent(&line[start..], whole_line);
        out.push_str(&line[at..start + skipped]);
        out.push_str(MASK);
        at = start + skipped + length;
        if open.is_some() {
            out.push('\n');
            return (out, open);
        }
    }
    out.push_str(&line[at..]);
    (out, None)
}

/// Where the next name of [`NAMES`] begins and ends.
fn next_name(lower: &str, from: usize) -> Option<(usize, usize)> {
    let found = NAMES.iter().filter_map(|name| {
        let begin = lower[from..].find(name)? + from;
        Some((begin + name.len(), begin))
    });
    found.min().map(|(end, begin)| (begin, end))
}

fn of_names(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// Where the value begins, if something is assigned at all: by `=`, by `:`, or to `--an-option`.
fn value_of(line: &str, begin: usize, end: usize) -> Option<usize> {
    const BLANK: [char; 2] = [' ', '\t'];
    let word = line[..begin].trim_end_matches(of_names).len();
    let is_option = line[word..].starts_with("--");
    let after = line[end..].trim_start_matches(of_names);
    let assigned = after.trim_start_matches(['\\', '"', '\'']).trim_start_matches(BLANK);
    let value = match assigned.strip_prefix(['=', ':']) {
        Some(value) => value.trim_start_matches(BLANK),
        None if is_option && after.starts_with(BLANK) => after.trim_start_matches(BLANK),
        None => return None,
    };
    // What is opened at the end of a line has names of its own in it.
    let nothing = ["", "{"].contains(&value.trim()) || value.starts_with(MASK);
    (!nothing).then(|| line.len() - value.len())
}

/// How much of a value is to be left, how much after it is to be masked, and what ends it if this line does
/// not.
fn extent(value: &str, whole_line: bool) -> (usize, usize, Option<&'static str>) {
    for (opens, closes) in [("\"\"\"", "\"\"\""), ("'''", "'''"), ("[", "]")] {
        if let Some(inner) = value.strip_prefix(opens) {
            return match inner.find(closes) {
                Some(length) => (opens.len(), length, None),
                None => (opens.len(), inner.len(), Some(closes)),
            };
        }
    }
    let (skipped, length) = if let Some(inner) = value.strip_prefix("\\\"") {
        // Text in JSON within a text in JSON.
        (2, inner.find("\\\""))
    } else if let Some(quote @ ('"' | '\'')) = value.chars().next() {
        (1, closing(&value[1..], quote))
    } else if let Some(inner) = value.strip_prefix('{') {
        (1, inner.find('}'))
    } else {
        let ends = |c: char| match whole_line {
            true => matches!(c, '"' | '\'' | '\n'),
            false => {
                c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ';' | '&' | '}' | ']' | ')')
            }
        };
        (0, value.find(ends))
    };
    let inner = &value[skipped..];
    (skipped, length.unwrap_or(inner.trim_end_matches('\n').len()), None)
}

/// Where a quoted text ends.
fn closing(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at),
            _ => {}
        }
    }
    None
}

/// `http://user:password@host`
fn without_users(line: &str) -> String {
    let mut parts = line.split("://");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("://");
        let authority = part.find(|c: char| c.is_whitespace() || "/?#\"'".contains(c));
        match part[..authority.unwrap_or(part.len())].rfind('@') {
            Some(user) => {
                out.push_str(MASK);
                out.push_str(&part[user..]);
            }
            None => out.push_str(part),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::masked;

    #[test]
    fn what_lets_somebody_in_is_taken_out_and_the_rest_stays() {
        for (text, wanted) in [
            (
                "a\n-----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY-----\nb",
                "a\n[masked]\nb",
            ),
            (
                r#"{"k":"-----BEGIN PRIVATE KEY-----\nMHc\n-----END PRIVATE KEY-----\n"}"#,
                r#"{"k":"[masked]\n"}"#,
            ),
            ("-----BEGIN PRIVATE KEY-----\nMHc and no end", "[masked]"),
            ("-----BEGIN CERTIFICATE-----\nMII\n", "-----BEGIN CERTIFICATE-----\nMII\n"),
            ("join --token SWMTKN-1-abc-def 10.0.0.1", "join --token [masked] 10.0.0.1"),
            ("db_password = \"hunter2\" # old", "db_password = \"[masked]\" # old"),
            ("a=1 Token=xyz b=2", "a=1 Token=[masked] b=2"),
            (r#"{"api-token": "xyz", "n": 1}"#, r#"{"api-token": "[masked]", "n": 1}"#),
            ("Authorization: Bearer abc.def\nnext", "Authorization: [masked]\nnext"),
            ("the secrets of tokens", "the secrets of tokens"),
            (
                "http://joe:pw@registry/x and http://host/a@b",
                "http://[masked]@registry/x and http://host/a@b",
            ),
            ("secret=a secret=b", "secret=[masked] secret=[masked]"),
            ("passphrase = \"correct horse\"", "passphrase = \"[masked]\""),
            (r#"password = "a&b \" c" # d"#, "password = \"[masked]\" # d"),
            ("passwords = [\"a\", \"b\"]\nn = 1", "passwords = [[masked]]\nn = 1"),
            ("tokens = [\n  \"a\",\n  \"b\",\n]\nn = 1", "tokens = [[masked]\n]\nn = 1"),
            ("password = \"\"\"a\nb\"\"\"\nc", "password = \"\"\"[masked]\n\"\"\"\nc"),
            (r#""{\"password\":\"a b\",\"n\":1}""#, r#""{\"password\":\"[masked]\",\"n\":1}""#),
            (r#"{"token": "", "n": 1}"#, r#"{"token": "[masked]", "n": 1}"#),
            ("{\n  \"token-service\": {\n    \"n\": 1", "{\n  \"token-service\": {\n    \"n\": 1"),
            ("login --password hunter2 host", "login --password [masked] host"),
            ("api_key=x, pwd=y", "api_key=[masked], pwd=[masked]"),
            ("MHc\n-----END EC PRIVATE KEY-----\nb", "[masked]\nb"),
            ("password=ü passwd=é", "password=[masked] passwd=[masked]"),
        ] {
            assert_eq!(masked(text), wanted, "{text}");
        }
    }
}
