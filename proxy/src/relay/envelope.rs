//! What one node tells another of a flow: a PROXY header of version 2, with a field of our own that
//! names the published port and the task. What the client asked for may have another port: a trusted
//! sender can speak for somebody who came another way.

use weir_mesh::{PublishedPort, ident::Tag, install::Frontend};

use crate::{
    header::{self, Addresses, HeaderError},
    tcp::Entry,
};

/// A flow that is handed over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Envelope {
    pub(crate) entry: Entry,
    /// The task that was chosen, within the service of the published port.
    pub(crate) tag: Tag,
    /// Whether it was handed over before.
    pub(crate) hopped: bool,
}

/// The type of the field: of those that the specification leaves to applications.
const FIELD: u8 = 0xe7;
const HOPPED: u32 = 1 << 23;
/// Before the addresses.
const FIXED: usize = 16;
/// Addresses of IPv6 and the field.
pub(super) const LONGEST: usize = FIXED + 36 + 3 + 6;

/// How many bytes an envelope has in all, as far as its first bytes tell; more than [`LONGEST`] if
/// it is none.
pub(super) fn wanted(bytes: &[u8]) -> usize {
    match bytes.get(14..FIXED) {
        Some(length) => FIXED + usize::from(u16::from_be_bytes([length[0], length[1]])),
        None => FIXED,
    }
}

impl Envelope {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Entry { client, asked, frontend } = self.entry;
        let word = self.tag.0 | if self.hopped { HOPPED } else { 0 };
        let addresses = Addresses { source: client, destination: asked };
        let [a, b, c, d] = word.to_be_bytes();
        let [high, low] = frontend.port.get().to_be_bytes();
        header::binary(frontend.protocol, addresses, &[(FIELD, &[a, b, c, d, high, low])])
    }

    /// Reads the envelope that `bytes` begin with, and how many of them it takes; `None` if there
    /// must be more.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, HeaderError> {
        let Some(header) = header::parse(bytes)? else { return Ok(None) };
        let (protocol, addresses) = header.addresses.ok_or(HeaderError::Short)?;
        let field = header.fields.iter().find(|(kind, _)| *kind == FIELD);
        let value = field.and_then(|(_, value)| <[u8; 6]>::try_from(*value).ok());
        let [a, b, c, d, high, low] = value.ok_or(HeaderError::Short)?;
        let word = u32::from_be_bytes([a, b, c, d]);
        let port = PublishedPort::new(u16::from_be_bytes([high, low])).ok_or(HeaderError::Short)?;
        let entry = Entry {
            client: crate::address::plain(addresses.source),
            asked: crate::address::plain(addresses.destination),
            frontend: Frontend { protocol, port },
        };
        let envelope = Self { entry, tag: Tag(word & !HOPPED), hopped: word & HOPPED != 0 };
        Ok(Some((envelope, header.length)))
    }
}

#[cfg(test)]
mod tests {
    use weir_mesh::Protocol;

    use super::*;

    fn envelope(client: &str, asked: &str, protocol: Protocol, hopped: bool) -> Envelope {
        let (client, asked): (std::net::SocketAddr, std::net::SocketAddr) =
            (client.parse().unwrap(), asked.parse().unwrap());
        let port = PublishedPort::new(8080).unwrap();
        let entry = Entry { client, asked, frontend: Frontend { protocol, port } };
        Envelope { entry, tag: Tag(Tag::MAX), hopped }
    }

    #[test]
    fn an_envelope_says_who_asked_what_and_for_which_task() {
        for (client, asked) in
            [("10.0.0.1:5000", "10.0.0.11:80"), ("[fd00::1]:5000", "[fd00::11]:65535")]
        {
            for (protocol, hopped) in [(Protocol::Tcp, false), (Protocol::Udp, true)] {
                let sent = envelope(client, asked, protocol, hopped);
                let mut bytes = sent.encode();
                assert!(bytes.len() <= LONGEST);
                assert_eq!(wanted(&bytes[..FIXED]), bytes.len());
                let length = bytes.len();
                bytes.extend(b"payload");
                let (read, taken) = Envelope::parse(&bytes).unwrap().unwrap();
                assert_eq!((taken, read.tag, read.hopped), (length, sent.tag, hopped));
                assert_eq!(
                    (read.entry.client, read.entry.asked),
                    (sent.entry.client, sent.entry.asked)
                );
                assert_eq!(read.entry.frontend, sent.entry.frontend);
            }
        }
    }

    #[test]
    fn a_header_without_our_field_is_no_envelope() {
        let addresses = Addresses {
            source: "10.0.0.1:1".parse().unwrap(),
            destination: "10.0.0.2:2".parse().unwrap(),
        };
        let bytes = header::binary(Protocol::Tcp, addresses, &[(0x05, b"id")]);
        assert!(Envelope::parse(&bytes).is_err());
        for value in [&[0, 0, 0, 1][..], &[0, 0, 0, 1, 0, 0]] {
            let bytes = header::binary(Protocol::Tcp, addresses, &[(FIELD, value)]);
            assert!(Envelope::parse(&bytes).is_err(), "{value:?}");
        }
    }
}
