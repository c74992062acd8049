//! The status page: three files inside the binary, which read the JSON API.

use http_body_util::Full;
use hyper::{
    HeaderMap, Response, StatusCode,
    body::Bytes,
    header::{
        ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY,
        X_CONTENT_TYPE_OPTIONS,
    },
};

use super::response;

/// Nothing is loaded but from this agent, and nothing in the page runs that is not in its files: names
/// come from whoever may create a service.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Path, kind and text of each file.
const FILES: [(&str, &str, &str); 3] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/page/page.css", "text/css; charset=utf-8", include_str!("page/page.css")),
    ("/page/page.js", "text/javascript; charset=utf-8", include_str!("page/page.js")),
];

/// Whether the client is a browser, or anything else that asks for HTML.
pub(super) fn wanted(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|kind| kind.trim().starts_with("text/html"))
}

/// A file of the page, if that is one's path.
pub(super) fn file(path: &str) -> Option<Response<Full<Bytes>>> {
    let (_, kind, text) = FILES.iter().find(|(known, ..)| *known == path)?;
    let mut response = response(StatusCode::OK, kind, Bytes::from_static(text.as_bytes()));
    let headers: [(HeaderName, &str); 4] = [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        // Another agent may answer at the same address tomorrow.
        (CACHE_CONTROL, "no-cache"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepting(kinds: &'static str) -> HeaderMap {
        [(ACCEPT, HeaderValue::from_static(kinds))].into_iter().collect()
    }

    #[test]
    fn a_browser_gets_the_page_and_curl_does_not() {
        assert!(wanted(&accepting("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8")));
        assert!(!wanted(&accepting("*/*")));
        assert!(!wanted(&HeaderMap::new()));
    }

    #[test]
    fn every_file_of_the_page_is_there_and_nothing_else_may_run_or_load() {
        let index = FILES[0].2;
        for path in ["/page/page.css", "/page/page.js"] {
            assert!(index.contains(path), "the page uses {path}");
            assert!(file(path).is_some(), "{path}");
        }
        let page = file("/").unwrap();
        assert!(
            page.headers()[CONTENT_SECURITY_POLICY]
                .to_str()
                .unwrap()
                .contains("default-src 'none'")
        );
        assert!(
            !index.contains("http://") && !index.contains("https://"),
            "no fetches from outside"
        );
        assert!(file("/page/../Cargo.toml").is_none());
    }
}
