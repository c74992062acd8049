//! The hash by which Maglev chooses a cell: the same on every node and in every build.

/// Mixes two 64-bit words into one (the finaliser of SplitMix64 around a multiply; constants from
/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[inline(always)]
pub fn mix(a: u64, b: u64) -> u64 {
    let mut x = a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Maps a hash to `0..len` without a division (Lemire's multiply-shift).
#[inline(always)]
pub fn reduce(hash: u64, len: u32) -> u32 {
    (((hash >> 32) * u64::from(len)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_ports_spread_evenly() {
        let mut cells = [0u32; 7];
        for port in 0..70_000u64 {
            cells[reduce(mix(0x0a4d_0065, port), 7) as usize] += 1;
        }
        for count in cells {
            assert!((9_700..10_300).contains(&count), "{cells:?}");
        }
    }

    #[test]
    fn the_hash_never_changes() {
        assert_eq!(mix(1, 2), 0xbeeb_8da1_658e_ec67);
    }
}
