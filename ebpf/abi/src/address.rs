//! Addresses in network order, as whole words: the compiler then moves and compares them as such,
//! where an array of bytes would be handled byte by byte.

/// An IPv4 address.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ip4(u32);

/// An IPv6 address; also an IPv4 address as `::ffff:a.b.c.d`, where one type must do for both.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ip6 {
    high: u64,
    low: u64,
}

impl Ip4 {
    /// `0.0.0.0`: none.
    pub const NONE: Self = Self(0);

    /// From its bytes on the wire.
    #[inline(always)]
    pub const fn new(octets: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(octets))
    }

    /// Its bytes on the wire.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }

    /// The word as the machine loads it from the wire.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0
    }

    /// From the word as the machine loads it from the wire.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// As `::ffff:a.b.c.d`.
    #[inline(always)]
    pub const fn mapped(self) -> Ip6 {
        let prefix = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
        Ip6::from_words([0, 0, prefix, self.0])
    }
}

impl Ip6 {
    /// `::`: none.
    pub const NONE: Self = Self { high: 0, low: 0 };

    /// From its bytes on the wire.
    #[inline(always)]
    pub const fn new(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self {
            high: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            low: u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
        }
    }

    /// Its bytes on the wire.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h] = self.high.to_ne_bytes();
        let [i, j, k, l, m, n, o, p] = self.low.to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// The two words as the machine loads them from the wire.
    #[inline(always)]
    pub const fn halves(self) -> [u64; 2] {
        [self.high, self.low]
    }

    /// Whether it is lower than another, as a number: the order of the bytes on the wire.
    #[inline(always)]
    pub const fn is_below(self, other: Self) -> bool {
        let (high, other_high) = (u64::from_be(self.high), u64::from_be(other.high));
        high < other_high || high == other_high && u64::from_be(self.low) < u64::from_be(other.low)
    }

    /// The four words as the machine loads them from the wire.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        let [a, b] = pair(self.high);
        let [c, d] = pair(self.low);
        [a, b, c, d]
    }

    /// From the four words as the machine loads them from the wire.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        let [a, b, c, d] = words;
        Self { high: join(a, b), low: join(c, d) }
    }

    /// The IPv4 address, if this is one as `::ffff:a.b.c.d`.
    #[inline(always)]
    pub const fn unmapped(self) -> Option<Ip4> {
        let [a, b, c, d] = self.words();
        if a == 0 && b == 0 && c == u32::from_ne_bytes([0, 0, 0xff, 0xff]) {
            Some(Ip4(d))
        } else {
            None
        }
    }
}

#[cfg(target_endian = "little")]
const fn pair(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}

#[cfg(target_endian = "big")]
const fn pair(word: u64) -> [u32; 2] {
    [(word >> 32) as u32, word as u32]
}

#[cfg(target_endian = "little")]
const fn join(first: u32, second: u32) -> u64 {
    first as u64 | (second as u64) << 32
}

#[cfg(target_endian = "big")]
const fn join(first: u32, second: u32) -> u64 {
    (first as u64) << 32 | second as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_same_by_bytes_words_and_halves() {
        let octets = [0xfd, 0x77, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        let addr = Ip6::new(octets);
        assert_eq!(addr.octets(), octets);
        assert_eq!(Ip6::from_words(addr.words()), addr);
        assert_eq!(addr.unmapped(), None);
    }

    #[test]
    fn addresses_are_ordered_as_their_bytes_are() {
        let below = |a: [u8; 4], b: [u8; 4]| Ip4::new(a).mapped().is_below(Ip4::new(b).mapped());
        assert!(below([10, 0, 2, 1], [10, 0, 10, 0]) && below([10, 0, 0, 255], [10, 0, 1, 0]));
        assert!(!below([10, 0, 1, 0], [10, 0, 0, 255]) && !below([1, 2, 3, 4], [1, 2, 3, 4]));
        assert!(Ip6::new([1; 16]).is_below(Ip6::new([2; 16])));
    }

    #[test]
    fn an_ipv4_address_maps_into_ipv6_and_back() {
        let addr = Ip4::new([10, 77, 0, 11]);
        let octets = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 77, 0, 11];
        assert_eq!(addr.mapped().octets(), octets);
        assert_eq!(addr.mapped().unmapped(), Some(addr));
        assert_eq!(Ip6::new([0; 16]).unmapped(), None);
    }
}
