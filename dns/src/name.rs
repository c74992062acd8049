//! Names in the form in which they are compared: as on the wire, in lower case, without the root.

/// The longest name on the wire, with the root's byte (RFC 1035 2.3.4).
pub const LONGEST: usize = 255;
/// The longest label.
pub const LONGEST_LABEL: usize = 63;

/// A name as it is looked up: each label after its length, in lower case, without the root at the end.
pub type Key = Box<[u8]>;

/// A name that was asked for, and where its labels begin.
#[derive(Clone)]
pub struct Asked {
    bytes: [u8; LONGEST],
    len: u8,
    starts: [u8; LONGEST / 2 + 1],
    labels: u8,
}

impl Asked {
    /// Reads the name that begins at `at` in a packet, and says where it ends. `None` for what no
    /// question may hold: pointers, labels or names that are too long, an end that is missing.
    pub fn read(packet: &[u8], at: usize) -> Option<(Self, usize)> {
        let mut name =
            Self { bytes: [0; LONGEST], len: 0, starts: [0; LONGEST / 2 + 1], labels: 0 };
        let mut from = at;
        loop {
            let length = usize::from(*packet.get(from)?);
            if length == 0 {
                return Some((name, from + 1));
            }
            let label = packet.get(from..from + 1 + length)?;
            let begin = usize::from(name.len);
            // One byte is the root's.
            if length > LONGEST_LABEL || begin + label.len() >= LONGEST {
                return None;
            }
            let to = name.bytes.get_mut(begin..begin + label.len())?;
            to.copy_from_slice(label);
            // A length is below 64, where no letters are.
            to.make_ascii_lowercase();
            *name.starts.get_mut(usize::from(name.labels))? = name.len;
            name.labels += 1;
            name.len += label.len() as u8;
            from += label.len();
        }
    }

    /// From a name in lower case on the wire, without the root.
    pub fn of(key: &[u8]) -> Option<Self> {
        let whole: Vec<u8> = key.iter().copied().chain([0]).collect();
        Self::read(&whole, 0).map(|(name, _)| name)
    }

    /// The whole name.
    pub fn key(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// How many labels it has.
    pub fn labels(&self) -> usize {
        usize::from(self.labels)
    }

    /// Where a label begins; the end of the name for the label after the last.
    pub fn start(&self, label: usize) -> usize {
        if label < self.labels() { usize::from(self.starts[label]) } else { usize::from(self.len) }
    }

    /// A label without its length; nothing after the last.
    pub fn label(&self, at: usize) -> &[u8] {
        let (start, end) = (self.start(at), self.start(at + 1));
        self.bytes.get(start + 1..end).unwrap_or_default()
    }

    /// Labels `from..to`.
    pub fn part(&self, from: usize, to: usize) -> &[u8] {
        &self.bytes[self.start(from)..self.start(to)]
    }

    /// How many labels are in front of `suffix`, if the name is that or below it.
    pub fn labels_before(&self, suffix: &[u8]) -> Option<usize> {
        let start = self.key().len().checked_sub(suffix.len())?;
        if &self.key()[start..] != suffix {
            return None;
        }
        (0..=self.labels()).find(|label| self.start(*label) == start)
    }
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&show(self.key()))
    }
}

/// From text (`web.weir.` or `web.weir`). `None` for what is no name.
pub fn from_text(text: &str) -> Option<Key> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let mut key = Vec::with_capacity(text.len() + 1);
    if text.is_empty() {
        return Some(key.into());
    }
    for label in text.split('.') {
        if label.is_empty() || label.len() > LONGEST_LABEL {
            return None;
        }
        key.push(label.len() as u8);
        key.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    (key.len() < LONGEST).then(|| key.into())
}

/// As text with a dot at the end. Bytes that are not plain are written as `\DDD`, as in zone files.
pub fn show(key: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = key;
    while let Some((length, after)) = rest.split_first() {
        let Some((label, after)) = after.split_at_checked(usize::from(*length)) else { break };
        for byte in label {
            match byte {
                b'.' | b'\\' => text.extend(['\\', char::from(*byte)]),
                byte if byte.is_ascii_graphic() => text.push(char::from(*byte)),
                byte => text.push_str(&format!("\\{byte:03}")),
            }
        }
        text.push('.');
        rest = after;
    }
    if text.is_empty() { ".".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_in_lower_case_with_its_labels() {
        let (name, end) = Asked::read(b"..\x03WeB\x04Blue\x00rest", 2).unwrap();
        assert_eq!((show(name.key()).as_str(), name.labels(), end), ("web.blue.", 2, 12));
        assert_eq!(
            (name.label(0), name.label(1), name.label(2)),
            (&b"web"[..], &b"blue"[..], &b""[..])
        );
        assert_eq!(name.part(1, 2), b"\x04blue");
    }

    #[test]
    fn what_no_question_may_hold_is_no_name() {
        let long_label = [&[64][..], &[b'a'; 64], &[0]].concat();
        let long_name: Vec<u8> =
            [[3, b'a', b'b', b'c']; 64].concat().into_iter().chain([0]).collect();
        for bytes in [&b"\xc0\x00"[..], b"\x03we", b"", b"\x01a", &long_label, &long_name] {
            assert!(Asked::read(bytes, 0).is_none(), "{bytes:?}");
        }
    }

    #[test]
    fn a_name_may_have_255_bytes_and_not_256() {
        let of = |last: usize| {
            let label = |length: usize| [vec![length as u8], vec![b'a'; length]].concat();
            let bytes: Vec<u8> = [label(63), label(63), label(63), label(last), vec![0]].concat();
            (bytes.len(), Asked::read(&bytes, 0).is_some())
        };
        assert_eq!((of(61), of(62)), ((255, true), (256, false)));
    }

    #[test]
    fn a_suffix_is_found_at_labels_only() {
        let name = Asked::of(&from_text("my.web.weir").unwrap()).unwrap();
        let before = |suffix: &str| name.labels_before(&from_text(suffix).unwrap());
        assert_eq!(
            (before("weir"), before("eir"), before("web.weir."), before(".")),
            (Some(2), None, Some(1), Some(3))
        );
    }

    #[test]
    fn text_and_name_are_each_others_inverse() {
        for text in ["web.", "web.1.abc.blue.weir.", "."] {
            assert_eq!(show(&from_text(text).unwrap()), text);
        }
        assert!(from_text("a..b").is_none() && from_text(&"a".repeat(64)).is_none());
    }
}
