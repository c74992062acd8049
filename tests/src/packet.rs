//! Packets as text: built from a line, and described by one, so that a case reads
//! `"tcp 10.77.0.101:40000 > 10.77.0.11:8080 S ttl 64 mss 1460"` in and out.
//!
//! A description recomputes every checksum and says `BAD` where one is wrong.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{
    IcmpEchoHeader, Icmpv4Type, Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TcpHeader,
    TcpOptionElement, TransportSlice,
};

/// Length of an Ethernet header.
pub const ETH_LEN: usize = 14;

/// Builds a packet from its description: `PROTOCOL SRC:PORT > DST:PORT [FLAGS] [KEY VALUE]…`, where
/// the keys are `ttl`, `mss`, `data` (bytes of payload), `seq`, `ack`, `options` (of TCP, in
/// hexadecimal digits); and `nosum` for a UDP checksum of zero.
///
/// # Errors
/// When the text is no packet.
pub fn build(text: &str) -> Result<Vec<u8>> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [protocol, src, ">", dst, rest @ ..] = words.as_slice() else {
        bail!("{text:?} is not `PROTOCOL SRC > DST …`");
    };
    let src: SocketAddr = src.parse().with_context(|| format!("source of {text:?}"))?;
    let dst: SocketAddr = dst.parse().with_context(|| format!("destination of {text:?}"))?;
    let options = Options::read(rest)?;
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0xc], [2, 0, 0, 0, 0, 0xa]);
    let ip = match (src.ip(), dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => link.ipv4(src.octets(), dst.octets(), options.ttl),
        (IpAddr::V6(src), IpAddr::V6(dst)) => link.ipv6(src.octets(), dst.octets(), options.ttl),
        _ => bail!("{text:?} mixes address families"),
    };
    let payload = vec![0x5a; options.data];
    let mut bytes = Vec::new();
    match *protocol {
        "tcp" => ip.tcp_header(options.tcp(src.port(), dst.port())?).write(&mut bytes, &payload)?,
        "udp" => ip.udp(src.port(), dst.port()).write(&mut bytes, &payload)?,
        "echo" => {
            let echo = IcmpEchoHeader { id: src.port(), seq: dst.port() };
            match src {
                SocketAddr::V4(_) => {
                    ip.icmpv4(Icmpv4Type::EchoRequest(echo)).write(&mut bytes, &payload)?;
                }
                SocketAddr::V6(_) => {
                    ip.icmpv6(Icmpv6Type::EchoRequest(echo)).write(&mut bytes, &payload)?;
                }
            }
        }
        other => bail!("no protocol {other:?}"),
    }
    if options.nosum {
        let header = if src.is_ipv4() { 20 } else { 40 };
        bytes[ETH_LEN + header + 6..ETH_LEN + header + 8].fill(0);
    }
    Ok(bytes)
}

#[derive(Default)]
struct Options {
    flags: String,
    ttl: u8,
    mss: Option<u16>,
    data: usize,
    seq: u32,
    ack: u32,
    nosum: bool,
    /// TCP options as they are on the wire.
    raw: Option<Vec<u8>>,
}

impl Options {
    fn read(words: &[&str]) -> Result<Self> {
        let mut options = Self { ttl: 64, ..Self::default() };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if *word == "options" {
                options.raw = Some(hex(words.next().context("a value is missing")?)?);
                continue;
            }
            let mut number = || -> Result<u32> {
                words.next().context("a value is missing")?.parse().context("a value")
            };
            match *word {
                "ttl" => options.ttl = number()? as u8,
                "mss" => options.mss = Some(number()? as u16),
                "data" => options.data = number()? as usize,
                "seq" => options.seq = number()?,
                "ack" => options.ack = number()?,
                "nosum" => options.nosum = true,
                flags => {
                    ensure!(flags.chars().all(|flag| "SARFP".contains(flag)), "no flags: {flags}");
                    options.flags = flags.to_owned();
                }
            }
        }
        Ok(options)
    }

    fn tcp(&self, src: u16, dst: u16) -> Result<TcpHeader> {
        let mut tcp = TcpHeader::new(src, dst, self.seq, 1024);
        tcp.acknowledgment_number = self.ack;
        let has = |flag| self.flags.contains(flag);
        (tcp.syn, tcp.ack, tcp.rst) = (has('S'), has('A'), has('R'));
        (tcp.fin, tcp.psh) = (has('F'), has('P'));
        if let Some(mss) = self.mss {
            tcp.set_options(&[TcpOptionElement::MaximumSegmentSize(mss)])?;
        }
        if let Some(raw) = &self.raw {
            tcp.set_options_raw(raw)?;
        }
        Ok(tcp)
    }
}

fn hex(digits: &str) -> Result<Vec<u8>> {
    let byte = |at| digits.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Option<_> = (0..digits.len()).step_by(2).map(byte).collect();
    bytes.with_context(|| format!("{digits:?} are no pairs of hexadecimal digits"))
}

/// Describes a packet in the form that [`build`] takes, with the checksums verified.
pub fn describe(bytes: &[u8]) -> String {
    match try_describe(bytes) {
        Ok(text) => text,
        Err(error) => format!("BAD packet: {error:#}"),
    }
}

fn try_describe(bytes: &[u8]) -> Result<String> {
    let packet = SlicedPacket::from_ethernet(bytes)?;
    let net = packet.net.context("no IP header")?;
    let (src, dst, ttl, sum_right) = match &net {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            let right = header.calc_header_checksum() == header.header_checksum;
            let (src, dst) = (header.source.into(), header.destination.into());
            (src, dst, header.time_to_live, right)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let (src, dst) = (header.source_addr().into(), header.destination_addr().into());
            (src, dst, header.hop_limit(), true)
        }
        NetSlice::Arp(_) => bail!("an ARP packet"),
    };
    let mut text = transport(&packet.transport.context("no transport header")?, &net, src, dst)?;
    write!(text, " ttl {ttl}")?;
    if !sum_right {
        text.push_str(" BAD IP CHECKSUM");
    }
    Ok(text)
}

fn transport(
    transport: &TransportSlice<'_>,
    net: &NetSlice<'_>,
    src: IpAddr,
    dst: IpAddr,
) -> Result<String> {
    Ok(match transport {
        TransportSlice::Tcp(tcp) => {
            let (from, to) = (tcp.source_port(), tcp.destination_port());
            let header = tcp.to_header();
            let sum = match net {
                NetSlice::Ipv4(ip) => {
                    header.calc_checksum_ipv4(&ip.header().to_header(), tcp.payload())?
                }
                NetSlice::Ipv6(ip) => {
                    header.calc_checksum_ipv6(&ip.header().to_header(), tcp.payload())?
                }
                NetSlice::Arp(_) => bail!("TCP over ARP"),
            };
            tcp_text(&header, tcp.payload().len(), src, from, dst, to) + bad(sum == header.checksum)
        }
        TransportSlice::Udp(udp) => {
            let (from, to) = (udp.source_port(), udp.destination_port());
            let header = udp.to_header();
            let sum = match net {
                NetSlice::Ipv4(ip) => {
                    header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload())?
                }
                NetSlice::Ipv6(ip) => {
                    header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload())?
                }
                NetSlice::Arp(_) => bail!("UDP over ARP"),
            };
            let ends = ends("udp", src, from, dst, to);
            let sum = match header.checksum {
                0 => " nosum",
                given => bad(given == sum),
            };
            format!("{ends}{}{sum}", data(udp.payload().len()))
        }
        TransportSlice::Icmpv4(icmp) => {
            let sum = icmp.icmp_type().calc_checksum(icmp.payload());
            let quoted = quoted(icmp.payload());
            format!("icmp {src} > {dst} {:?} about [{quoted}]", icmp.icmp_type())
                + bad(sum == icmp.checksum())
        }
        TransportSlice::Icmpv6(icmp) => {
            let (IpAddr::V6(from), IpAddr::V6(to)) = (src, dst) else { bail!("ICMPv6 over IPv4") };
            let sum = icmp.icmp_type().calc_checksum(from.octets(), to.octets(), icmp.payload())?;
            let quoted = quoted(icmp.payload());
            format!("icmp {src} > {dst} {:?} about [{quoted}]", icmp.icmp_type())
                + bad(sum == icmp.checksum())
        }
    })
}

fn tcp_text(
    header: &TcpHeader,
    payload: usize,
    src: IpAddr,
    from: u16,
    dst: IpAddr,
    to: u16,
) -> String {
    let mut text = ends("tcp", src, from, dst, to);
    let flags: String = [
        (header.syn, 'S'),
        (header.ack, 'A'),
        (header.rst, 'R'),
        (header.fin, 'F'),
        (header.psh, 'P'),
    ]
    .into_iter()
    .filter_map(|(set, letter)| set.then_some(letter))
    .collect();
    if !flags.is_empty() {
        text = format!("{text} {flags}");
    }
    match header.options.as_slice() {
        [] => {}
        [2, 4, high, low] => {
            text = format!("{text} mss {}", u16::from_be_bytes([*high, *low]));
        }
        raw => {
            text.push_str(" options ");
            raw.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap_or_default());
        }
    }
    for (name, number) in [("seq", header.sequence_number), ("ack", header.acknowledgment_number)] {
        if number != 0 {
            text = format!("{text} {name} {number}");
        }
    }
    text + &data(payload)
}

fn ends(protocol: &str, src: IpAddr, from: u16, dst: IpAddr, to: u16) -> String {
    format!("{protocol} {} > {}", SocketAddr::new(src, from), SocketAddr::new(dst, to))
}

fn data(len: usize) -> String {
    if len == 0 { String::new() } else { format!(" data {len}") }
}

fn bad(right: bool) -> &'static str {
    if right { "" } else { " BAD CHECKSUM" }
}

/// What an ICMP error is about: the addresses and ports of the quoted packet.
fn quoted(payload: &[u8]) -> String {
    let (src, dst, rest): (IpAddr, IpAddr, &[u8]) = match payload.first().map(|byte| byte >> 4) {
        Some(4) if payload.len() >= 28 => {
            let addr = |at: usize| <[u8; 4]>::try_from(&payload[at..at + 4]).map(IpAddr::from);
            let (Ok(src), Ok(dst)) = (addr(12), addr(16)) else { return "?".to_owned() };
            (src, dst, &payload[20..])
        }
        Some(6) if payload.len() >= 48 => {
            let addr = |at: usize| <[u8; 16]>::try_from(&payload[at..at + 16]).map(IpAddr::from);
            let (Ok(src), Ok(dst)) = (addr(8), addr(24)) else { return "?".to_owned() };
            (src, dst, &payload[40..])
        }
        _ => return format!("{} bytes", payload.len()),
    };
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    format!("{} > {}", SocketAddr::new(src, port(0)), SocketAddr::new(dst, port(2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_described_as_it_was_built() {
        for text in [
            "tcp 10.77.0.101:40000 > 10.77.0.11:8080 S mss 1460 seq 7 ttl 64",
            "tcp [fd77::101]:40000 > [fd77::11]:8080 AP seq 7 ack 9 data 100 ttl 3",
            "tcp 10.77.0.101:40000 > 10.77.0.11:8080 S options 01020405b4000000 ttl 64",
            "udp 10.77.0.101:40000 > 10.77.0.11:5353 data 12 ttl 64",
            "udp 10.77.0.101:40000 > 10.77.0.11:5353 data 12 nosum ttl 64",
        ] {
            assert_eq!(describe(&build(text).unwrap()), text);
        }
    }

    #[test]
    fn a_wrong_checksum_is_seen() {
        let mut packet = build("tcp 10.0.0.1:1 > 10.0.0.2:2 S").unwrap();
        packet[ETH_LEN + 20 + 16] ^= 1;
        assert!(describe(&packet).contains("BAD CHECKSUM"), "{}", describe(&packet));
        let mut packet = build("udp 10.0.0.1:1 > 10.0.0.2:2 data 3").unwrap();
        packet[ETH_LEN + 8] -= 1;
        assert!(describe(&packet).contains("BAD IP CHECKSUM"), "{}", describe(&packet));
    }
}
