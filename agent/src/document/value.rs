//! Tables and values with their position, read by the type that is expected there.

use std::{fmt, ops::RangeInclusive, str::FromStr, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Findings, Place, nearest};

/// A table of a document.
#[derive(Clone, Copy)]
pub struct Table<'t, 'i> {
    findings: &'t Findings<'i>,
    entries: &'t DeTable<'i>,
    /// Offset of the table's own header in the whole document.
    offset: usize,
    /// Offset of the piece that spans count from.
    base: usize,
    subject: &'t str,
}

/// A value of a document, or one given by a flag or variable.
#[derive(Clone, Copy)]
pub struct Value<'t, 'i> {
    findings: &'t Findings<'i>,
    value: &'t Spanned<DeValue<'i>>,
    base: usize,
    subject: &'t str,
    key: &'t str,
    place: Option<&'t Place>,
}

// === impl Table ===

impl<'t, 'i> Table<'t, 'i> {
    /// The top of a piece that starts at `base` in the whole document.
    pub fn root(findings: &'t Findings<'i>, table: &'t Spanned<DeTable<'i>>, base: usize) -> Self {
        let offset = base + table.span().start;
        Self { findings, entries: table.get_ref(), offset, base, subject: "" }
    }

    /// The same table under another name in messages (`service web`).
    pub fn named(self, subject: &'t str) -> Self {
        Self { subject, ..self }
    }

    /// Where the table stands.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Notes a mistake of the table as a whole.
    pub fn fault(&self, problem: impl Into<String>, remedy: impl Into<String>) {
        self.findings.note(self.offset, self.subject, problem, remedy);
    }

    /// Notes every key that is not among `known`.
    pub fn allow_only(&self, known: &[&str]) {
        for key in self.entries.keys() {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let remedy = match nearest(name, known.iter().copied()) {
                Some(nearest) => format!("did you mean \"{nearest}\"?"),
                None => format!("known here: {}", known.join(", ")),
            };
            let offset = self.base + key.span().start;
            self.findings.note(offset, qualified(self.subject, name), "unknown key", remedy);
        }
    }

    /// The value of a key, if it is set.
    pub fn get(&self, key: &'t str) -> Option<Value<'t, 'i>> {
        let value = self.entries.get(key)?;
        let Self { findings, base, subject, .. } = *self;
        Some(Value { findings, value, base, subject, key, place: None })
    }

    /// All keys with their values.
    pub fn entries(&self) -> impl Iterator<Item = (&'t str, Value<'t, 'i>)> + use<'t, 'i> {
        let Self { findings, base, subject, entries, .. } = *self;
        entries.iter().map(move |(key, value)| {
            let key = key.get_ref().as_ref();
            (key, Value { findings, value, base, subject, key, place: None })
        })
    }

    /// The value of a key that must be set.
    pub fn require(&self, key: &'t str, remedy: &str) -> Option<Value<'t, 'i>> {
        let value = self.get(key);
        if value.is_none() {
            let problem = format!("\"{key}\" is missing");
            self.findings.note(self.offset, self.subject, problem, remedy);
        }
        value
    }
}

// === impl Value ===

impl<'t, 'i> Value<'t, 'i> {
    /// A value from a flag or variable.
    pub fn elsewhere(
        findings: &'t Findings<'i>,
        value: &'t Spanned<DeValue<'i>>,
        key: &'t str,
        place: &'t Place,
    ) -> Self {
        Self { findings, value, base: 0, subject: "", key, place: Some(place) }
    }

    /// The same value under another name in messages.
    pub fn keyed(self, key: &'t str) -> Self {
        Self { key, ..self }
    }

    /// Where it was set, if not in the document.
    pub fn place(&self) -> Option<&'t Place> {
        self.place
    }

    /// Where it stands in the whole document.
    pub fn offset(&self) -> usize {
        self.base + self.value.span().start
    }

    /// The key with what it belongs to.
    pub fn key(&self) -> String {
        qualified(self.subject, self.key)
    }

    /// The value as the user wrote it, cut short if it is long.
    pub fn as_written(&self) -> String {
        let mut text = written(self.value.get_ref());
        if text.chars().count() > 60 {
            text = text.chars().take(57).chain("...".chars()).collect();
        }
        text
    }

    /// Notes a mistake in this value.
    pub fn fault(&self, problem: impl Into<String>, remedy: impl Into<String>) {
        self.findings.note_value(self, problem.into(), remedy.into());
    }

    fn wrong_type(&self, wanted: &str, example: impl fmt::Display) {
        let found = type_name(self.value.get_ref());
        self.fault(format!("{found} where {wanted} belongs"), format!("write {example}"));
    }

    /// Whether it is a string.
    pub fn is_string(&self) -> bool {
        self.value.get_ref().is_str()
    }

    /// Whether it is a table.
    pub fn is_table(&self) -> bool {
        self.value.get_ref().is_table()
    }

    /// Whether it is a list.
    pub fn is_list(&self) -> bool {
        self.value.get_ref().is_array()
    }

    /// A string that is not empty.
    pub fn string(&self, example: &str) -> Option<&'t str> {
        match self.value.get_ref() {
            DeValue::String(text) if text.is_empty() => {
                self.fault("an empty string", format!("write {example}, or leave the key out"));
                None
            }
            DeValue::String(text) => Some(text.as_ref()),
            _ => {
                self.wrong_type("a string", example);
                None
            }
        }
    }

    /// A string that parses as `T`.
    pub fn parse<T: FromStr>(&self, wanted: &str, example: &str) -> Option<T> {
        let text = self.string(example)?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.fault(format!("not {wanted}"), format!("write {example}"));
        }
        parsed
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let words = || choices.iter().map(|(word, _)| *word);
        let listed = words().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        let text = self.string(&listed)?;
        let chosen = choices.iter().find(|(word, _)| *word == text).map(|&(_, choice)| choice);
        if chosen.is_none() {
            let remedy = match nearest(text, words()) {
                Some(word) => format!("did you mean \"{word}\"? (known: {listed})"),
                None => format!("write one of {listed}"),
            };
            self.fault("no such choice", remedy);
        }
        chosen
    }

    /// A whole number within limits.
    pub fn number(&self, limits: RangeInclusive<u64>) -> Option<u64> {
        let wanted = format!("a number from {} to {}", limits.start(), limits.end());
        let number: Option<i128> = match self.value.get_ref() {
            DeValue::Integer(integer) => {
                i128::from_str_radix(integer.as_str(), integer.radix()).ok()
            }
            DeValue::String(text) if self.place.is_some() => text.trim().parse().ok(),
            _ => {
                self.wrong_type("a whole number", &wanted);
                return None;
            }
        };
        let within = number.and_then(|n| u64::try_from(n).ok()).filter(|n| limits.contains(n));
        if within.is_none() {
            self.fault("out of range", format!("write {wanted}"));
        }
        within
    }

    /// `true` or `false`; `example` says what else would be right.
    pub fn switch(&self, example: &str) -> Option<bool> {
        let switch = match self.value.get_ref() {
            DeValue::String(text) if self.place.is_some() => text.trim().parse().ok(),
            value => value.as_bool(),
        };
        if switch.is_none() {
            self.wrong_type("true or false", example);
        }
        switch
    }

    /// A whole number, whatever its size, as written.
    pub fn integer_text(&self) -> Option<String> {
        self.value.get_ref().as_integer().map(ToString::to_string)
    }

    /// A length of time such as `"30s"`, at most `longest`.
    pub fn duration(&self, longest: Duration) -> Option<Duration> {
        let text = self.string("a time such as \"30s\"")?;
        let Some(duration) = parse_duration(text) else {
            let remedy = "write a whole number with a unit: \"500ms\", \"30s\", \"5m\" or \"2h\"";
            self.fault("not a length of time", remedy);
            return None;
        };
        if duration.is_zero() || duration > longest {
            let remedy = format!("write more than nothing and at most \"{}s\"", longest.as_secs());
            self.fault("out of range", remedy);
            return None;
        }
        Some(duration)
    }

    /// The entries of a list.
    pub fn list(&self, example: &str) -> Option<impl Iterator<Item = Self> + use<'t, 'i>> {
        let DeValue::Array(entries) = self.value.get_ref() else {
            self.wrong_type("a list", example);
            return None;
        };
        let list = *self;
        Some(entries.iter().map(move |value| Self { value, ..list }))
    }

    /// A table.
    pub fn table(&self, example: &str) -> Option<Table<'t, 'i>> {
        let DeValue::Table(entries) = self.value.get_ref() else {
            self.wrong_type("a table", example);
            return None;
        };
        let Self { findings, base, subject, .. } = *self;
        Some(Table { findings, entries, offset: self.offset(), base, subject })
    }
}

fn qualified(subject: &str, key: &str) -> String {
    if subject.is_empty() {
        return key.to_owned();
    }
    let joint = if subject.contains(' ') { ": " } else { "." };
    format!("{subject}{joint}{key}")
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn written(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(integer) => integer.to_string(),
        DeValue::Float(float) => float.to_string(),
        DeValue::Boolean(boolean) => boolean.to_string(),
        DeValue::Datetime(datetime) => datetime.to_string(),
        DeValue::Array(entries) => {
            let entries: Vec<_> = entries.iter().map(|entry| written(entry.get_ref())).collect();
            format!("[{}]", entries.join(", "))
        }
        DeValue::Table(table) => {
            let entry = |(key, value): (&Spanned<_>, &Spanned<_>)| {
                format!("{} = {}", key.get_ref(), written(value.get_ref()))
            };
            format!("{{ {} }}", table.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
    }
}

/// `30s`, `500ms`, `5m`, `2h`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let milliseconds = match unit.trim() {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.checked_mul(milliseconds)?))
}
