//! The PROXY protocol, versions 1 and 2: who the client is, said before its first byte.
//!
//! The rules are those of <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use weir_mesh::Protocol;
pub use weir_mesh::proxied::HeaderVersion as Version;

use crate::address::same_family;

/// Who talks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The client.
    pub source: SocketAddr,
    /// What the client asked for.
    pub destination: SocketAddr,
}

/// A header that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// Who talks to whom; `None`: the sender speaks for itself, or does not know.
    pub addresses: Option<(Protocol, Addresses)>,
    /// What follows the addresses in version 2, by type.
    pub fields: Vec<(u8, &'a [u8])>,
    /// How many bytes it takes.
    pub length: usize,
}

/// What is wrong with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Neither version begins like this.
    #[error("this is no PROXY header")]
    NoHeader,
    /// A line that is longer than any can be.
    #[error("the line is longer than 107 bytes")]
    TooLong,
    /// A line that says something else.
    #[error("the line is not one of version 1")]
    Line,
    /// Version, command or address family that nobody knows.
    #[error("version, command or family {0:#04x} is unknown")]
    Unknown(u8),
    /// Less than its length says.
    #[error("addresses or fields are longer than the header")]
    Short,
    /// It was changed on the way.
    #[error("the checksum is wrong")]
    Checksum,
}

/// How version 2 begins.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, with its end.
const LONGEST_LINE: usize = 107;
/// Before the addresses of version 2.
const FIXED: usize = 16;
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
/// The type of a field that holds the CRC32c of the header with zeros in its place.
const CHECKSUM: u8 = 0x03;

/// A header for a TCP connection, or in version 2 for a UDP datagram.
pub fn encode(version: Version, protocol: Protocol, addresses: Addresses) -> Vec<u8> {
    match version {
        Version::V1 => line(addresses),
        Version::V2 => binary(protocol, addresses, &[]),
    }
}

/// A header of version 2 with fields behind the addresses.
pub fn binary(protocol: Protocol, addresses: Addresses, fields: &[(u8, &[u8])]) -> Vec<u8> {
    let Addresses { source, destination } = addresses;
    let transport = match protocol {
        Protocol::Tcp => 1,
        Protocol::Udp => 2,
    };
    let mut bytes = SIGNATURE.to_vec();
    bytes.push(PROXY);
    match same_family(source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            bytes.extend([0x10 | transport, 0, 0]);
            bytes.extend(from.octets().into_iter().chain(to.octets()));
        }
        (from, to) => {
            bytes.extend([0x20 | transport, 0, 0]);
            bytes.extend(octets(from).into_iter().chain(octets(to)));
        }
    }
    for port in [source.port(), destination.port()] {
        bytes.extend(port.to_be_bytes());
    }
    for (kind, value) in fields {
        bytes.push(*kind);
        bytes.extend((value.len() as u16).to_be_bytes());
        bytes.extend(*value);
    }
    let length = (bytes.len() - FIXED) as u16;
    bytes[14..FIXED].copy_from_slice(&length.to_be_bytes());
    bytes
}

fn line(addresses: Addresses) -> Vec<u8> {
    let Addresses { source, destination } = addresses;
    let (from, to) = same_family(source.ip(), destination.ip());
    let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
    let ports = format!("{} {}", source.port(), destination.port());
    format!("PROXY {family} {from} {to} {ports}\r\n").into_bytes()
}

/// Reads the header that `bytes` begin with; `None` if more bytes are needed to tell.
pub fn parse(bytes: &[u8]) -> Result<Option<Header<'_>>, HeaderError> {
    if begins(bytes, &SIGNATURE) {
        return parse_binary(bytes);
    }
    if begins(bytes, b"PROXY ") {
        return parse_line(bytes);
    }
    Err(HeaderError::NoHeader)
}

/// Whether one is the beginning of the other.
fn begins(bytes: &[u8], with: &[u8]) -> bool {
    let common = bytes.len().min(with.len());
    bytes[..common] == with[..common]
}

fn parse_line(bytes: &[u8]) -> Result<Option<Header<'_>>, HeaderError> {
    let window = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < LONGEST_LINE { Ok(None) } else { Err(HeaderError::TooLong) };
    };
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| HeaderError::Line)?;
    let (fields, length) = (Vec::new(), end + 2);
    let words: Vec<&str> = text.split(' ').collect();
    let addresses = match words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => None,
        ["PROXY", family @ ("TCP4" | "TCP6"), from, to, source, destination] => {
            let address = |text: &str| match *family {
                "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
                _ => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            };
            let socket = |ip: &str, port| Some(SocketAddr::new(address(ip)?, number(port)?));
            let source = socket(from, source).ok_or(HeaderError::Line)?;
            let destination = socket(to, destination).ok_or(HeaderError::Line)?;
            Some((Protocol::Tcp, Addresses { source, destination }))
        }
        _ => return Err(HeaderError::Line),
    };
    Ok(Some(Header { addresses, fields, length }))
}

/// A port without sign and leading zeros.
fn number(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    (plain && (text == "0" || !text.starts_with('0'))).then(|| text.parse().ok())?
}

fn parse_binary(bytes: &[u8]) -> Result<Option<Header<'_>>, HeaderError> {
    let Some(&[command, family, high, low]) = bytes.get(12..FIXED) else { return Ok(None) };
    if command != LOCAL && command != PROXY {
        return Err(HeaderError::Unknown(command));
    }
    let length = FIXED + usize::from(u16::from_be_bytes([high, low]));
    let Some(whole) = bytes.get(..length) else { return Ok(None) };
    let rest = &whole[FIXED..];
    if command == LOCAL {
        // The sender speaks for itself: whatever follows, the family with it, is to be passed over.
        return Ok(Some(Header { addresses: None, fields: Vec::new(), length }));
    }
    let protocol = match family & 0x0f {
        2 => Protocol::Udp,
        _ => Protocol::Tcp,
    };
    let (addresses, fields) = match family {
        0x11 | 0x12 => addresses::<4>(rest, |octets| Ipv4Addr::from(octets).into())?,
        0x21 | 0x22 => addresses::<16>(rest, |octets| Ipv6Addr::from(octets).into())?,
        // Sockets of one host: two paths of 108 bytes.
        0x31 | 0x32 => (None, rest.get(216..).ok_or(HeaderError::Short)?),
        // Whoever does not know says nothing that could be read.
        0x00 => (None, &rest[rest.len()..]),
        unknown => return Err(HeaderError::Unknown(unknown)),
    };
    let fields = parse_fields(fields)?;
    check(whole, &fields)?;
    let addresses = addresses.map(|known| (protocol, known));
    Ok(Some(Header { addresses, fields, length }))
}

fn addresses<const N: usize>(
    bytes: &[u8],
    ip: impl Fn([u8; N]) -> IpAddr,
) -> Result<(Option<Addresses>, &[u8]), HeaderError> {
    let (from, rest) = bytes.split_first_chunk::<N>().ok_or(HeaderError::Short)?;
    let (to, rest) = rest.split_first_chunk::<N>().ok_or(HeaderError::Short)?;
    let (ports, rest) = rest.split_first_chunk::<4>().ok_or(HeaderError::Short)?;
    let source = SocketAddr::new(ip(*from), u16::from_be_bytes([ports[0], ports[1]]));
    let destination = SocketAddr::new(ip(*to), u16::from_be_bytes([ports[2], ports[3]]));
    Ok((Some(Addresses { source, destination }), rest))
}

fn parse_fields(mut bytes: &[u8]) -> Result<Vec<(u8, &[u8])>, HeaderError> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let ([kind, high, low], rest) = bytes.split_first_chunk().ok_or(HeaderError::Short)?;
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, rest) = rest.split_at_checked(length).ok_or(HeaderError::Short)?;
        fields.push((*kind, value));
        bytes = rest;
    }
    Ok(fields)
}

fn check(whole: &[u8], fields: &[(u8, &[u8])]) -> Result<(), HeaderError> {
    let Some((_, sum)) = fields.iter().find(|(kind, _)| *kind == CHECKSUM) else { return Ok(()) };
    let sum: [u8; 4] = (*sum).try_into().map_err(|_| HeaderError::Checksum)?;
    // Where in the header the field's value is.
    let at = fields.iter().rev().take_while(|(kind, _)| *kind != CHECKSUM);
    let behind: usize = at.map(|(_, value)| value.len() + 3).sum();
    let mut zeroed = whole.to_vec();
    let end = whole.len() - behind;
    zeroed[end - 4..end].fill(0);
    if crc32c(&zeroed) == u32::from_be_bytes(sum) { Ok(()) } else { Err(HeaderError::Checksum) }
}

/// CRC-32C (Castagnoli), bit by bit: headers are short and most have none.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
