//! The server's numbers, for one scrape.

use std::{fmt, sync::Arc, time::Instant};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};
use weir_dns::counters::{Times, TimesRead};

use super::Dns;
use crate::metrics::out::{Out, signed};

/// Tells the server's numbers as they are now; for a registry with the prefix `weir`.
pub struct DnsMetrics(pub Arc<Dns>);

impl fmt::Debug for DnsMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DnsMetrics")
    }
}

impl Collector for DnsMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut Out(&mut encoder);
        self.questions(out)?;
        self.durations(out)?;
        self.forwarding(out)?;
        self.state(out)
    }
}

impl DnsMetrics {
    fn questions(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let counters = &self.0.handler.counters;
        let one = |key: &'static str| {
            move |(word, count): (&str, u64)| (vec![(key, word.to_owned())], count)
        };
        out.counter("dns_queries", "Questions, by type", counters.queries().map(one("type")))?;
        let help = "Questions, by what they came by";
        out.counter("dns_requests", help, counters.transports().map(one("transport")))?;
        let answers = counters.answers().map(|(source, code, count)| {
            (vec![("source", source.to_owned()), ("rcode", code.to_owned())], count)
        });
        out.counter("dns_answers", "Answers, by where they come from and by code", answers)?;
        let help = "Questions that were dropped or refused, and answers that were lost";
        out.counter("dns_drops", help, counters.drops().map(one("reason")))?;
        let help = "Answers that did not fit as a whole";
        out.count("dns_truncated", help, counters.truncated())
    }

    fn durations(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let counters = &self.0.handler.counters;
        let help = "From a question to its answer: here (path=local), or by somebody else";
        let mut family =
            out.0.encode_descriptor("dns_duration_seconds", help, None, MetricType::Histogram)?;
        for (path, times) in [("local", &counters.local), ("forwarded", &counters.forwarded)] {
            let labels = [("path", path)];
            let TimesRead { buckets, seconds, count } = Times::read(times);
            family
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)?;
        }
        Ok(())
    }

    fn forwarding(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let upstreams = self.0.handler.forwarder.routes().read();
        let labels = |one: &weir_dns::forward::UpstreamRead| {
            vec![("server", one.address.to_string()), ("domain", one.domain.clone())]
        };
        let up = upstreams.iter().map(|one| (labels(one), i64::from(one.up)));
        out.gauge("dns_upstream_up", "Whether a server answers", up)?;
        let queries = upstreams.iter().map(|one| (labels(one), one.queries));
        out.counter("dns_upstream_queries", "Questions to a server", queries)?;
        let failures = upstreams.iter().map(|one| (labels(one), one.failures));
        out.counter("dns_upstream_failures", "Those without an answer", failures)?;
        let cache = self.0.handler.forwarder.read_cache(Instant::now());
        let help = "Others' answers that are remembered";
        out.value("dns_cache_entries", help, signed(cache.entries))?;
        out.value("dns_cache_bytes", "Their bytes, roughly", signed(cache.bytes))?;
        let hits = "Questions that were answered from the cache";
        out.count("dns_cache_hits", hits, cache.hits)?;
        let misses = "Questions that others had to be asked";
        out.count("dns_cache_misses", misses, cache.misses)
    }

    fn state(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let view = self.0.view();
        let limits = self.0.server.limits();
        let generation = view.generation.and_then(|number| i64::try_from(number).ok());
        for (name, help, value) in [
            ("dns_names", "Names of services and tasks", signed(view.names)),
            ("dns_askers", "Containers of this node that may ask", signed(view.askers)),
            ("dns_generation", "The snapshot that is answered from", generation.unwrap_or(0)),
            ("dns_in_flight", "Questions that others are being asked", signed(limits.questions)),
            ("dns_connections", "TCP connections", signed(limits.connections)),
        ] {
            out.value(name, help, value)?;
        }
        Ok(())
    }
}
