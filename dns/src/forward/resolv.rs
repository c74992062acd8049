//! The servers that a host asks, as `/etc/resolv.conf` names them.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use super::routes::PORT;

/// The `nameserver` lines of a `resolv.conf`. What is written wrongly is left out, as resolvers do.
pub fn servers_in(text: &str) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let server = words.next().and_then(server);
        servers.extend(server.filter(|server| !servers.contains(server)));
    }
    servers
}

/// `fe80::1%2` names the interface of a link-local address.
fn server(text: &str) -> Option<SocketAddr> {
    if let Some((address, scope)) = text.split_once('%') {
        return Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, scope.parse().ok()?).into());
    }
    Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, PORT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_are_read_and_all_else_is_left_out() {
        let text = "# comment\nsearch example.com\nnameserver 10.0.0.53\nnameserver  fd00::53 # own\n\
                    nameserver\nnameserver 300.1.2.3\nnameserver 10.0.0.53\noptions ndots:5\n\
                    nameserver fe80::1%3\n";
        let servers: Vec<String> = servers_in(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.53:53", "[fd00::53]:53", "[fe80::1%3]:53"]);
    }
}
