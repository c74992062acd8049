//! Docker's short syntax: `[PUBLISHED[-LAST]:]TARGET[-LAST][/PROTOCOL]`.

use std::net::IpAddr;

use super::{PortSpec, SyntaxError};
use crate::service::{Protocol, PublishMode, PublishedPort, TargetPort};

/// Reads one specification in Docker's short syntax; a range gives several ports.
///
/// Ranges map one to one. A range of published ports with a single target publishes every one of
/// them for that target: `docker service create -p 8000-8005:80` does so (`docker run` would
/// choose one of them instead, but a mesh port is the same on all nodes). An address is refused,
/// where Docker would ignore it with a warning: who writes 127.0.0.1 relies on it.
pub fn parse_ports(spec: &str) -> Result<Vec<PortSpec>, SyntaxError> {
    let (ports, protocol) = split_protocol(spec)?;
    let Some((published, target)) = ports.rsplit_once(':') else {
        let targets = parse_range(spec, ports)?;
        return Ok(targets.map(|target| port(protocol, None, target)).collect());
    };
    if let Some((address, published)) = published.rsplit_once(':') {
        return Err(refuse_address(spec, address, published, target));
    }
    let published = parse_range(spec, published)?;
    let target = parse_range(spec, target)?;
    match (published.len(), target.len()) {
        (_, 1) => {
            let first = target.first;
            Ok(published.map(|published| port(protocol, Some(published), first)).collect())
        }
        (some, same) if some == same => Ok(published
            .zip(target)
            .map(|(published, target)| port(protocol, Some(published), target))
            .collect()),
        (published, target) => {
            Err(SyntaxError::Lengths { spec: spec.to_owned(), published, target })
        }
    }
}

fn port(protocol: Protocol, published: Option<TargetPort>, target: TargetPort) -> PortSpec {
    let published = published.map(|TargetPort(number)| PublishedPort(number));
    PortSpec { protocol, published, target, mode: PublishMode::Ingress }
}

fn split_protocol(spec: &str) -> Result<(&str, Protocol), SyntaxError> {
    let Some((ports, name)) = spec.split_once('/') else {
        return Ok((spec, Protocol::Tcp));
    };
    let unknown = |()| SyntaxError::Protocol { spec: spec.to_owned(), value: name.to_owned() };
    let protocol = name.to_ascii_lowercase().parse().map_err(unknown)?;
    Ok((ports, protocol))
}

/// `127.0.0.1:80:80`, `[::1]:80:80`, or only too many colons.
fn refuse_address(spec: &str, address: &str, published: &str, target: &str) -> SyntaxError {
    let bare = address.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<IpAddr>().is_err() {
        return SyntaxError::NotAPort { spec: spec.to_owned(), value: address.to_owned() };
    }
    let protocol = spec.split_once('/').map(|(_, name)| format!("/{name}")).unwrap_or_default();
    let without = match published {
        "" => format!("{target}{protocol}"),
        _ => format!("{published}:{target}{protocol}"),
    };
    SyntaxError::Address { spec: spec.to_owned(), address: address.to_owned(), without }
}

/// Ports from `first` on, `left` of them. The end was checked, so counting up never overflows.
struct Range {
    first: TargetPort,
    left: u16,
}

impl Iterator for Range {
    type Item = TargetPort;

    fn next(&mut self) -> Option<TargetPort> {
        self.left = self.left.checked_sub(1)?;
        let here = self.first;
        self.first = TargetPort(here.0.saturating_add(1));
        Some(here)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left.into(), Some(self.left.into()))
    }
}

impl ExactSizeIterator for Range {}

fn parse_range(spec: &str, text: &str) -> Result<Range, SyntaxError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (parse_number(spec, first)?, parse_number(spec, last)?);
    if first > last {
        let (first, last) = (first.get(), last.get());
        return Err(SyntaxError::Inverted { spec: spec.to_owned(), first, last });
    }
    Ok(Range { first, left: last.get() - first.get() + 1 })
}

fn parse_number(spec: &str, text: &str) -> Result<TargetPort, SyntaxError> {
    let (owned, value) = (spec.to_owned(), text.to_owned());
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(SyntaxError::NotAPort { spec: owned, value });
    }
    let port = text.parse().ok().and_then(TargetPort::new);
    port.ok_or(SyntaxError::OutOfRange { spec: owned, value })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(spec: &str) -> String {
        match parse_ports(spec) {
            Ok(ports) => ports.iter().map(show).collect::<Vec<_>>().join(" "),
            Err(error) => format!("error: {error}"),
        }
    }

    fn show(port: &PortSpec) -> String {
        let published = port.published.map_or("auto".to_owned(), |it| it.to_string());
        format!("{published}>{}/{}", port.target, port.protocol)
    }

    #[test]
    fn what_docker_accepts_is_accepted() {
        assert_eq!(shown("8080:80"), "8080>80/tcp");
        assert_eq!(shown("8080:80/udp"), "8080>80/udp");
        assert_eq!(shown("8080:80/UDP"), "8080>80/udp");
        assert_eq!(shown("80"), "auto>80/tcp");
        assert_eq!(shown("80-81/udp"), "auto>80/udp auto>81/udp");
        assert_eq!(shown("8000-8002:80-82/tcp"), "8000>80/tcp 8001>81/tcp 8002>82/tcp");
        assert_eq!(shown("8000-8002:80"), "8000>80/tcp 8001>80/tcp 8002>80/tcp");
        assert_eq!(shown("65535:65535"), "65535>65535/tcp");
    }

    #[test]
    fn a_protocol_that_the_mesh_does_not_carry_is_refused_by_name() {
        let both = "error: protocol \"tcp+udp\" in \"53:53/tcp+udp\" is not supported; use tcp or \
                    udp, and one entry for each if you need both";
        assert_eq!(shown("53:53/tcp+udp"), both);
        assert!(shown("80:80/sctp").starts_with("error: protocol \"sctp\""));
        assert!(shown("80:80/").starts_with("error: protocol \"\""));
    }

    #[test]
    fn an_address_is_refused_with_the_reason() {
        let refused = "error: \"127.0.0.1:80:80/udp\" names the address 127.0.0.1, but the mesh \
                       publishes on all addresses of every node; write \"80:80/udp\"";
        assert_eq!(shown("127.0.0.1:80:80/udp"), refused);
        assert!(shown("[::1]:80:80").contains("names the address [::1]"));
        assert!(shown("0.0.0.0::80").ends_with("write \"80\""));
    }

    #[test]
    fn what_is_no_port_is_refused_with_the_value() {
        let range = "error: port 70000 in \"70000:80\" is out of range; ports are 1 to 65535";
        assert_eq!(shown("70000:80"), range);
        assert!(shown("8080:0").starts_with("error: port 0 in"));
        assert!(shown("99999999999:1").starts_with("error: port 99999999999 in"));
        for (spec, value) in [
            ("", ""),
            (":80", ""),
            ("80:", ""),
            ("a:80", "a"),
            ("+8:80", "+8"),
            ("1:2:3", "1"),
            ("-80:80", ""),
        ] {
            let error = format!("error: \"{value}\" in \"{spec}\" is not a port");
            assert!(shown(spec).starts_with(&error), "{}", shown(spec));
        }
    }

    #[test]
    fn ranges_that_do_not_fit_are_refused() {
        assert_eq!(
            shown("8000-8001:80-82"),
            "error: \"8000-8001:80-82\" maps 2 published ports to 3 target ports; both ranges must \
             have the same length, or the target must be one port"
        );
        assert!(shown("8000:80-82").contains("maps 1 published ports to 3"));
        let inverted = "error: range 90-80 in \"8000-8010:90-80\" is inverted; write 80-90";
        assert_eq!(shown("8000-8010:90-80"), inverted);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(spec in "[0-9a-z:./\\-\\[\\]]{0,24}|.{0,12}") {
            let _ = parse_ports(&spec);
        }

        #[test]
        fn a_range_has_as_many_ports_as_it_says(first in 1_u16.., last in 1_u16..) {
            let (first, last) = (first.min(last), first.max(last));
            let ports = parse_ports(&format!("{first}-{last}:{first}-{last}")).unwrap();
            prop_assert_eq!(ports.len(), usize::from(last - first) + 1);
            prop_assert_eq!(ports.last().unwrap().target.get(), last);
        }
    }
}
