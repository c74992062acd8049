//! What the other end of a link sends: frames or the end of the connection, however it is cut into pieces.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weir::link::wire::Decoder;

fuzz_target!(|bytes: &[u8]| {
    let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut decoder, mut frames) = (Decoder::unpacking(), Vec::new());
        for piece in pieces {
            decoder.push(piece);
            while decoder.has_frame() {
                match decoder.frame() {
                    Ok(Some(frame)) => frames.push(format!("{frame:?}")),
                    Ok(None) => panic!("it said that there is one"),
                    Err(_) => return (frames, true),
                }
            }
        }
        (frames, false)
    };
    let whole = read(&mut std::iter::once(bytes));
    let pieces = read(&mut bytes.chunks(7));
    assert_eq!(whole, pieces);
});
