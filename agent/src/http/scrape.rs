//! `/metrics`: packed for those who take that, and made at most once a second where it is large.

use std::{
    fmt,
    io::Write as _,
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use http_body_util::Full;
use hyper::{
    HeaderMap, Response, StatusCode,
    body::Bytes,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue, VARY},
};
use tokio::sync::Mutex;

use super::{Routes, failure, response};

/// A scrape of more bytes is packed, and told again for so long, which is how old counters may be.
pub(super) const LARGE: usize = 1 << 20;
pub(super) const KEPT: Duration = Duration::from_secs(1);
const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Large scrapes, and when they were made.
#[derive(Debug, Default)]
pub(super) struct Scrapes {
    plain: Mutex<Option<(Instant, Scrape)>>,
    /// Apart: who takes packed ones, as Prometheus does, leaves no large text behind.
    packed: Mutex<Option<(Instant, Scrape)>>,
}

#[derive(Clone, Debug)]
struct Scrape {
    body: Bytes,
    packed: bool,
}

impl Routes {
    pub(super) async fn scrape(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let Scrape { body, packed } = match self.told(takes_gzip(headers)).await {
            Ok(scrape) => scrape,
            Err(error) => return failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        };
        let mut response = response(StatusCode::OK, KIND, body);
        let headers = response.headers_mut();
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        if packed {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }

    async fn told(&self, gzip: bool) -> Result<Scrape, fmt::Error> {
        let kept = if gzip { &self.scrapes.packed } else { &self.scrapes.plain };
        // Held while it is made: of many that ask at once, one makes it.
        let mut kept = kept.lock().await;
        if let Some((made, scrape)) = &*kept
            && made.elapsed() < KEPT
        {
            return Ok(scrape.clone());
        }
        let text = self.metrics.encode(self.observer.now_with_counters().await)?;
        let large = text.len() > LARGE;
        let packed = if gzip && large { pack(text.as_bytes()) } else { None };
        let scrape = match packed {
            Some(body) => Scrape { body, packed: true },
            None => Scrape { body: text.into(), packed: false },
        };
        *kept = large.then(|| (Instant::now(), scrape.clone()));
        Ok(scrape)
    }
}

/// At little cost: names and labels come again and again.
fn pack(text: &[u8]) -> Option<Bytes> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(text).and_then(|()| packed.finish()).ok().map(Bytes::from)
}

/// Whether a client takes gzip (RFC 9110, section 12.5.3); one that says nothing gets plain text.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let refused = |part: &str| {
            let weight = part.strip_prefix("q=").and_then(|weight| weight.parse::<f32>().ok());
            weight == Some(0.0)
        };
        named && !parts.any(refused)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn what_is_packed_is_read_again() {
        let text = "weir_drops_total{reason=\"no_backend\"} 7\n".repeat(50_000);
        let packed = pack(text.as_bytes()).unwrap();
        assert!(packed.len() * 20 < text.len(), "{} bytes", packed.len());
        let mut again = String::new();
        GzDecoder::new(&packed[..]).read_to_string(&mut again).unwrap();
        assert_eq!(again, text);
    }

    #[test]
    fn gzip_is_for_those_who_name_it() {
        let takes = |value| {
            let value = HeaderValue::from_static(value);
            takes_gzip(&[(ACCEPT_ENCODING, value)].into_iter().collect())
        };
        assert!(takes("gzip") && takes("deflate, GZip;q=0.5"));
        assert!(!takes("identity") && !takes("gzip;q=0, br") && !takes("gzip; q=0.000"));
        assert!(!takes_gzip(&HeaderMap::new()));
    }
}
