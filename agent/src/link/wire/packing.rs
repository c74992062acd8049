//! Items made short. Their field names and most of their values repeat: what a hub tells is a fifth
//! of its length. A hub packs a frame once, and a thousand nodes unpack it.

use miniz_oxide::{deflate::compress_to_vec, inflate::decompress_to_vec_with_limit};

use super::{Garbled, Head, MOST_FRAME, Span};

/// What is shorter than this travels as it is.
const LEAST: usize = 1 << 10;
/// zlib's own default: higher levels take several times as long for a few per cent.
const LEVEL: u8 = 6;

/// The same in fewer bytes; `None`: it is not worth it.
pub(super) fn pack(items: &[u8]) -> Option<Vec<u8>> {
    if items.len() < LEAST {
        return None;
    }
    Some(compress_to_vec(items, LEVEL)).filter(|packed| packed.len() < items.len())
}

/// The items of a frame that are packed, and which stretch they are; `None`: these are not.
pub(super) fn unpack(
    head: &Head,
    packed: &[u8],
    allowed: bool,
) -> Result<Option<(Span, Vec<u8>)>, Garbled> {
    let Head::Packed { span, length } = *head else { return Ok(None) };
    if !allowed {
        return Err(Garbled::Packed);
    }
    // Before anything of it is made.
    if length > MOST_FRAME {
        return Err(Garbled::Long { length });
    }
    let items = decompress_to_vec_with_limit(packed, length);
    let items = items.map_err(|error| Garbled::Packing(error.to_string()))?;
    if items.len() != length {
        let told = format!("{} bytes instead of {length}", items.len());
        return Err(Garbled::Packing(told));
    }
    Ok(Some((span, items)))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use weir_mesh::cluster::NodeId;

    use super::*;
    use crate::link::wire::{Decoder, Frame, Item};

    const SPAN: Span = Span { from: 0, to: 500, first: true, whole: true };

    fn items(count: usize) -> Vec<Item> {
        (0..count).map(|at| Item::Alive(NodeId::new(format!("node-{at}")), Some(true))).collect()
    }

    fn encoded(items: &[Item]) -> Vec<Bytes> {
        items.iter().map(|item| item.encode().expect("short")).collect()
    }

    fn packed(items: &[Item]) -> Bytes {
        let bytes = encoded(items);
        SPAN.packed_frame(&bytes.iter().map(AsRef::as_ref).collect::<Vec<_>>())
    }

    fn read(mut decoder: Decoder, bytes: &[u8]) -> Result<Frame, Garbled> {
        decoder.push(bytes);
        decoder.frame().map(|frame| frame.expect("a whole frame"))
    }

    #[test]
    fn what_was_packed_is_what_comes_out_and_is_much_shorter() {
        let items = items(500);
        let bytes = packed(&items);
        let frame = read(Decoder::unpacking(), &bytes).expect("a frame");
        assert_eq!((frame.head, frame.items), (Head::Batch(SPAN), items));
        assert!(bytes.len() * 3 < frame.length, "{} of {}", bytes.len(), frame.length);
    }

    #[test]
    fn one_change_travels_as_it_is() {
        let frame = read(Decoder::default(), &packed(&items(1))).expect("a frame");
        assert_eq!((frame.head, frame.items), (Head::Batch(SPAN), items(1)));
    }

    #[test]
    fn who_is_no_hub_may_not_pack() {
        let end = read(Decoder::default(), &packed(&items(500)));
        assert!(matches!(end, Err(Garbled::Packed)), "{end:?}");
    }

    #[test]
    fn what_claims_to_be_short_and_is_long_is_refused_and_so_is_what_claims_to_be_too_long() {
        let much = vec![0; 64 << 20];
        let bomb = compress_to_vec(&much, LEVEL);
        assert!(bomb.len() < 128 << 10, "{}", bomb.len());
        let frame = |length| {
            let head = Head::Packed { span: SPAN, length };
            head.frame_with(std::iter::once(bomb.as_slice()))
        };
        let end = read(Decoder::unpacking(), &frame(1000));
        assert!(matches!(end, Err(Garbled::Packing(_))), "{end:?}");
        let end = read(Decoder::unpacking(), &frame(much.len()));
        assert!(matches!(end, Err(Garbled::Long { .. })), "{end:?}");
    }

    #[test]
    fn packed_nonsense_is_refused_in_words() {
        let nonsense = [b'x'; 100];
        let head = Head::Packed { span: SPAN, length: 5000 };
        let end = read(Decoder::unpacking(), &head.frame_with(std::iter::once(&nonsense[..])));
        let text = end.expect_err("refused").to_string();
        assert!(text.contains("cannot be unpacked"), "{text}");
    }
}
