//! What the library `ppp` makes of a header. The fuzz target reads this file, too.

use std::net::SocketAddr;

use super::Addresses;

/// Of a line of version 1; `Some(None)`: the sender does not know.
pub fn line(bytes: &[u8]) -> Option<Option<Addresses>> {
    let header = ppp::v1::Header::try_from(bytes).ok()?;
    Some(match header.addresses {
        ppp::v1::Addresses::Tcp4(it) => Some(Addresses {
            source: SocketAddr::new(it.source_address.into(), it.source_port),
            destination: SocketAddr::new(it.destination_address.into(), it.destination_port),
        }),
        ppp::v1::Addresses::Tcp6(it) => Some(Addresses {
            source: SocketAddr::new(it.source_address.into(), it.source_port),
            destination: SocketAddr::new(it.destination_address.into(), it.destination_port),
        }),
        ppp::v1::Addresses::Unknown => None,
    })
}

/// Of version 2.
pub fn binary(bytes: &[u8]) -> Option<(Addresses, ppp::v2::Protocol)> {
    let header = ppp::v2::Header::try_from(bytes).ok()?;
    let addresses = match header.addresses {
        ppp::v2::Addresses::IPv4(it) => Addresses {
            source: SocketAddr::new(it.source_address.into(), it.source_port),
            destination: SocketAddr::new(it.destination_address.into(), it.destination_port),
        },
        ppp::v2::Addresses::IPv6(it) => Addresses {
            source: SocketAddr::new(it.source_address.into(), it.source_port),
            destination: SocketAddr::new(it.destination_address.into(), it.destination_port),
        },
        _ => return None,
    };
    Some((addresses, header.protocol))
}
