//! Who has which address: everything about the layout of a lab that is not a system call.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::link::Prefix;

/// The bridge of each host, like Docker's `docker_gwbridge`.
pub const GATEWAY: &str = "gw0";
/// The interface of hosts, clients and tasks.
pub const UPLINK: &str = "eth0";
/// Where Docker's ingress sandbox would be; nobody has this address in the lab.
pub const SANDBOX_V4: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);
/// The same in IPv6.
pub const SANDBOX_V6: Ipv6Addr = Ipv6Addr::new(0xfd18, 0, 0, 0, 0, 0, 0, 2);

const FIRST_HOST: u16 = 11;
const FIRST_CLIENT: u16 = 101;
const FIRST_TASK: u16 = 3;

/// Which address families tasks have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Families {
    /// IPv4 only, as Docker's `docker_gwbridge` is.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    #[default]
    Both,
}

impl Families {
    /// Keeps the addresses of these families.
    pub fn keep(self, addresses: [Prefix; 2]) -> Vec<Prefix> {
        addresses
            .into_iter()
            .filter(|(address, _)| match self {
                Self::V4 => address.is_ipv4(),
                Self::V6 => address.is_ipv6(),
                Self::Both => true,
            })
            .collect()
    }
}

/// The fabric's own addresses: the default gateway of hosts that have one.
pub fn fabric() -> [Prefix; 2] {
    on_fabric(1)
}

/// The addresses of the host with this index, from 0.
pub fn host(index: usize) -> [Prefix; 2] {
    on_fabric(FIRST_HOST + index as u16)
}

/// The addresses of the client with this index, from 0.
pub fn client(index: usize) -> [Prefix; 2] {
    on_fabric(FIRST_CLIENT + index as u16)
}

/// The addresses of `gw0`, the same on every host, as in Docker.
pub fn gateway() -> [Prefix; 2] {
    behind_gateway(1)
}

/// The addresses of the task with this index on its host, from 0: the first tasks of two hosts
/// have the same address.
pub fn task(index: u16) -> [Prefix; 2] {
    behind_gateway(FIRST_TASK + index)
}

fn on_fabric(number: u16) -> [Prefix; 2] {
    let [high, low] = number.to_be_bytes();
    let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, reads_as(number));
    [(Ipv4Addr::new(10, 77, high, low).into(), 16), (v6.into(), 64)]
}

fn behind_gateway(number: u16) -> [Prefix; 2] {
    let [high, low] = number.to_be_bytes();
    let v6 = Ipv6Addr::new(0xfd18, 0, 0, 0, 0, 0, 0, reads_as(number));
    [(Ipv4Addr::new(172, 18, high, low).into(), 16), (v6.into(), 64)]
}

/// 11 -> 0x11, so that `fd77::11` belongs to `10.77.0.11` for the reader.
fn reads_as(number: u16) -> u16 {
    u16::from_str_radix(&number.to_string(), 16).unwrap_or(number)
}

/// The addresses without their prefixes.
pub fn addresses(prefixes: &[Prefix]) -> Vec<IpAddr> {
    prefixes.iter().map(|(address, _)| *address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(prefixes: &[Prefix]) -> Vec<String> {
        prefixes.iter().map(|(address, length)| format!("{address}/{length}")).collect()
    }

    #[test]
    fn both_families_of_a_host_read_alike() {
        assert_eq!(text(&host(0)), ["10.77.0.11/16", "fd77::11/64"]);
        assert_eq!(text(&client(0)), ["10.77.0.101/16", "fd77::101/64"]);
        assert_eq!(text(&task(0)), ["172.18.0.3/16", "fd18::3/64"]);
    }

    #[test]
    fn families_filter_addresses() {
        assert_eq!(text(&Families::V4.keep(task(0))), ["172.18.0.3/16"]);
        assert_eq!(text(&Families::V6.keep(task(0))), ["fd18::3/64"]);
        assert_eq!(Families::Both.keep(task(0)).len(), 2);
    }
}
