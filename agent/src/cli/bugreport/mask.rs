//! Takes out of a text what lets somebody in: private keys, tokens, passwords. What only looks like that is
//! taken out, too; a report can be read without it.

const KEY_BEGIN: &str = "-----BEGIN ";
const KEY_END: &str = "-----END ";
const PRIVATE: &str = "PRIVATE KEY-----";
/// Of `docker swarm join`.
const JOIN_TOKEN: &str = "SWMTKN-";
const MASK: &str = "[masked]";

/// What follows one of these is nobody's business: `password = …`, `"token": "…"`, `Authorization: …`.
const NAMES: [&str; 9] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "credential",
    "authorization",
    "apikey",
    "private_key",
];

/// The text without secrets.
pub(super) fn masked(text: &str) -> String {
    let text = without_keys(text);
    let text = without_join_tokens(&text);
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        out.push_str(&without_users(&without_values(line)));
    }
    out
}

/// PEM, also with its line ends written as `\n`.
fn without_keys(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
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

/// What is assigned to a name that says what it is.
fn without_values(line: &str) -> String {
    // Bytes of ASCII stay where they are.
    let lower = line.to_ascii_lowercase();
    let mut out = String::with_capacity(line.len());
    let mut at = 0;
    while let Some(name_end) = next_name(&lower, at) {
        let after = &line[name_end..];
        let value = value_of(after).map(|value| value + name_end);
        let Some(start) = value else {
            out.push_str(&line[at..name_end]);
            at = name_end;
            continue;
        };
        out.push_str(&line[at..start]);
        out.push_str(MASK);
        let whole_line = lower[..name_end].ends_with("authorization");
        at = start + length(&line[start..], whole_line);
    }
    out.push_str(&line[at..]);
    out
}

/// Where the next name of [`NAMES`] ends.
fn next_name(lower: &str, from: usize) -> Option<usize> {
    let ends = NAMES.iter().filter_map(|name| Some(lower[from..].find(name)? + from + name.len()));
    ends.min()
}

/// Where the value begins, if something is assigned at all.
fn value_of(after: &str) -> Option<usize> {
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let rest = after.trim_start_matches(name).trim_start_matches(['"', '\'']).trim_start();
    let value = rest.strip_prefix(['=', ':'])?.trim_start();
    let value = value.trim_start_matches(['"', '\'']);
    (!value.is_empty()).then(|| after.len() - value.len())
}

/// How long a value is: to the next thing that ends one.
fn length(value: &str, whole_line: bool) -> usize {
    let ends = |c: char| match whole_line {
        true => matches!(c, '"' | '\'' | '\n'),
        false => c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ';' | '&' | '}' | ']' | ')'),
    };
    value.find(ends).unwrap_or(value.len())
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
            ("password=ü passwd=é", "password=[masked] passwd=[masked]"),
        ] {
            assert_eq!(masked(text), wanted, "{text}");
        }
    }
}
