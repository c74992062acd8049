//! What a connection begins with where PROXY headers are accepted.

#![no_main]

#[path = "../../proxy/src/header/oracle.rs"]
mod oracle;

use libfuzzer_sys::fuzz_target;
use weir_mesh::Protocol;
use weir_proxy::header::{Addresses, Version, encode, parse};

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some(header)) = parse(bytes) else { return };
    assert!(header.length <= bytes.len(), "it takes more than there is");
    // A header is read as soon as it is whole, and not before; what follows changes nothing.
    let (whole, short) = (&bytes[..header.length], &bytes[..header.length - 1]);
    assert_eq!(parse(whole).as_ref(), Ok(&Some(header.clone())));
    assert_eq!(parse(short), Ok(None));
    let Some((protocol, addresses)) = header.addresses else { return };
    for version in [Version::V1, Version::V2] {
        if version == Version::V1 && protocol == Protocol::Udp {
            continue;
        }
        let again = encode(version, protocol, addresses);
        let again = parse(&again).expect("its own header").expect("a whole one");
        assert_eq!(again.addresses, Some((protocol, addresses)));
    }
    let theirs = if whole.starts_with(b"PROXY ") {
        oracle::line(whole).flatten()
    } else {
        oracle::binary(whole).map(|(addresses, _)| addresses)
    };
    // The library refuses some of what the specification lets pass, and says nothing of those.
    if let Some(theirs) = theirs {
        assert_eq!(addresses, theirs, "{protocol:?}");
    }
});
