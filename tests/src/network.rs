//! Networks that reach across hosts, as Docker's overlay networks do: here a bridge.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::link::{Prefix, Veth};
use crate::netns::Netns;
use crate::plan;

const BRIDGE: &str = "net";

/// A network that containers of all hosts can be attached to. Nothing routes to it.
#[derive(Debug)]
pub struct Network {
    name: String,
    netns: Netns,
}

impl Network {
    /// A network without anybody on it: 10.0.9.0/24 and fd00:9::/64, like any other one.
    pub fn new(name: &str) -> Result<Self> {
        let netns = Netns::new()?;
        netns.set_up("lo", &[])?;
        netns.add_bridge(BRIDGE, 1450, &[])?;
        Ok(Self { name: name.to_owned(), netns })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its addresses that end so.
    pub fn addresses(last: u8) -> Vec<IpAddr> {
        plan::addresses(&prefixes(last))
    }

    /// Attaches a namespace by an interface named after the network, at the addresses that end so.
    pub fn attach(&self, netns: &Netns, last: u8) -> Result<Vec<IpAddr>> {
        let port = format!("port{last}");
        let (name, peer) = (self.name.as_str(), &self.netns);
        netns.add_veth(&Veth { name, peer, peer_name: &port, mtu: 1450 })?;
        self.netns.add_port(BRIDGE, &port)?;
        netns.set_up(name, &prefixes(last))?;
        self.netns.wait_forwarding(&port)?;
        Ok(Self::addresses(last))
    }
}

fn prefixes(last: u8) -> [Prefix; 2] {
    let v6 = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, last.into());
    [(Ipv4Addr::new(10, 0, 9, last).into(), 24), (v6.into(), 64)]
}
