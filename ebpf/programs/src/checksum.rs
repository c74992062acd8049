//! The Internet checksum, kept right while a packet changes.
//!
//! The checksum is the complement of a one's-complement sum of 16-bit words (RFC 1071). Such sums
//! do not care about byte order, so everything here adds words as the machine loads them. When a
//! word changes from `m` to `m'`, the sum changes by `~m + m'` (RFC 1624, equation 3): a
//! *difference* here is that number, or several added up, as a 32-bit one's-complement value. It is
//! the form that `bpf_l4_csum_replace` takes when its size is 0.

use weir_abi::{Ip4, Ip6};

/// Difference of replacing one 4-byte field by another, not yet folded.
#[inline(always)]
pub fn diff4(old: [u8; 4], new: [u8; 4]) -> u64 {
    u64::from(!u32::from_ne_bytes(old)) + u64::from(u32::from_ne_bytes(new))
}

/// Difference of replacing one IPv4 address by another, not yet folded.
#[inline(always)]
pub fn diff_ip4(old: Ip4, new: Ip4) -> u64 {
    u64::from(!old.word()) + u64::from(new.word())
}

/// Difference of replacing one IPv6 address by another, not yet folded.
#[inline(always)]
pub fn diff_ip6(old: Ip6, new: Ip6) -> u64 {
    let [a, b] = old.halves();
    let [c, d] = new.halves();
    low(!a) + high(!a) + low(!b) + high(!b) + low(c) + high(c) + low(d) + high(d)
}

/// Difference of replacing a source and destination port by others, not yet folded.
#[inline(always)]
pub fn diff_ports(old: ([u8; 2], [u8; 2]), new: ([u8; 2], [u8; 2])) -> u64 {
    let word = |(src, dst): ([u8; 2], [u8; 2])| [src[0], src[1], dst[0], dst[1]];
    diff4(word(old), word(new))
}

/// Folds a sum of up to 2^32 32-bit words to a 32-bit one's-complement value.
#[inline(always)]
pub fn fold32(sum: u64) -> u32 {
    let sum = low(sum) + high(sum);
    (low(sum) + high(sum)) as u32
}

/// Folds a 32-bit one's-complement value to 16 bits.
#[inline(always)]
pub fn fold16(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// A checksum field after a difference.
#[inline(always)]
pub fn apply(check: [u8; 2], diff: u32) -> [u8; 2] {
    let sum = u64::from(!u16::from_ne_bytes(check)) + u64::from(diff);
    (!fold16(fold32(sum))).to_ne_bytes()
}

/// The checksum field for a sum of words.
#[inline(always)]
pub fn finish(sum: u64) -> [u8; 2] {
    (!fold16(fold32(sum))).to_ne_bytes()
}

#[inline(always)]
fn low(word: u64) -> u64 {
    word & 0xffff_ffff
}

#[inline(always)]
fn high(word: u64) -> u64 {
    word >> 32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071, byte by byte.
    fn reference(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    /// 0x0000 and 0xffff are the same number in one's complement.
    fn same(a: [u8; 2], b: [u8; 2]) -> bool {
        a == b || (matches!(a, [0, 0] | [255, 255]) && matches!(b, [0, 0] | [255, 255]))
    }

    proptest! {
        #[test]
        fn replacing_an_ipv4_address_gives_the_checksum_of_the_new_bytes(
            mut bytes in prop::collection::vec(any::<u8>(), 20..=60),
            new in any::<[u8; 4]>(), at in 0usize..4,
        ) {
            bytes.truncate(bytes.len() & !3);
            let at = at * 4;
            let before = reference(&bytes);
            let old: [u8; 4] = bytes[at..at + 4].try_into().unwrap();
            bytes[at..at + 4].copy_from_slice(&new);
            prop_assert!(same(apply(before, fold32(diff_ip4(Ip4::new(old), Ip4::new(new)))), reference(&bytes)));
        }

        #[test]
        fn replacing_an_ipv6_address_and_ports_gives_the_checksum_of_the_new_bytes(
            mut bytes in prop::collection::vec(any::<u8>(), 40..=40),
            new in any::<[u8; 16]>(), ports in any::<[u8; 4]>(),
        ) {
            let before = reference(&bytes);
            let old: [u8; 16] = bytes[8..24].try_into().unwrap();
            let old_ports = ([bytes[36], bytes[37]], [bytes[38], bytes[39]]);
            bytes[8..24].copy_from_slice(&new);
            bytes[36..40].copy_from_slice(&ports);
            let new_ports = ([ports[0], ports[1]], [ports[2], ports[3]]);
            let diff = diff_ip6(Ip6::new(old), Ip6::new(new)) + diff_ports(old_ports, new_ports);
            prop_assert!(same(apply(before, fold32(diff)), reference(&bytes)));
        }

        #[test]
        fn a_sum_of_words_finishes_as_the_reference(words in prop::collection::vec(any::<u32>(), 1..300)) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let sum = words.iter().map(|word| u64::from(*word)).sum();
            prop_assert!(same(finish(sum), reference(&bytes)));
        }
    }
}
