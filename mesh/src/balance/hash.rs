//! The hash by which Maglev chooses a cell. The kernel programs compute the same
//! (`ebpf/programs/src/hash.rs`), so that a client keeps its task whichever plane serves it.

use std::net::{IpAddr, SocketAddr};

use crate::ident::Ident;

/// The cell of a service's table that a client has; 0 if there are none.
pub fn client_cell(client: SocketAddr, service: Ident, cells: usize) -> usize {
    let word = word(client.ip()) ^ (u64::from(client.port()) << 48);
    reduce(mix(word, service.0), cells)
}

fn word(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(v4) => u64::from(u32::from(v4)),
        IpAddr::V6(v6) => {
            let bits = u128::from(v6);
            (bits >> 64) as u64 ^ (bits as u64).rotate_left(32)
        }
    }
}

/// The finaliser of SplitMix64 around a multiply (Steele, Lea and Flood, "Fast splittable
/// pseudorandom number generators", 2014).
fn mix(a: u64, b: u64) -> u64 {
    let mut x = a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Maps a hash to `0..cells` (Lemire's multiply-shift).
fn reduce(hash: u64, cells: usize) -> usize {
    (((hash >> 32) * cells as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_kernel_programs() {
        // The same value stands in the test of ebpf/programs/src/hash.rs.
        assert_eq!(mix(1, 2), 0xbeeb_8da1_658e_ec67);
    }

    #[test]
    fn words_are_read_as_the_kernel_programs_read_them() {
        assert_eq!(word([10, 77, 0, 101].into()), 0x0a4d_0065);
        let v6 = "fd77:1:2:3:4:5:6:101".parse().unwrap();
        assert_eq!(word(v6), 0xfd77_0001_0002_0003 ^ 0x0006_0101_0004_0005);
    }

    #[test]
    fn consecutive_ports_spread_evenly() {
        let mut counts = [0; 7];
        for port in 0..7000 {
            let client = SocketAddr::new([10, 77, 0, 101].into(), port);
            counts[client_cell(client, Ident(7), 7)] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}
