//! The server's numbers, for one scrape.

use std::{fmt, sync::Arc, time::Instant};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};
use weir_dns::counters::{Times, TimesRead};

use super::Dns;

/// Tells the server's numbers as they are now; for a registry with the prefix `weir`.
pub struct DnsMetrics(pub Arc<Dns>);

type Labels = Vec<(&'static str, String)>;

impl fmt::Debug for DnsMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DnsMetrics")
    }
}

impl Collector for DnsMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut encoder;
        self.questions(out)?;
        self.durations(out)?;
        self.forwarding(out)?;
        self.state(out)
    }
}

impl DnsMetrics {
    fn questions(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counters = &self.0.handler.counters;
        let one = |key: &'static str| {
            move |(word, count): (&str, u64)| (vec![(key, word.to_owned())], count)
        };
        counter(out, "dns_queries", "Questions, by type", counters.queries().map(one("type")))?;
        let help = "Questions, by what they came by";
        counter(out, "dns_requests", help, counters.transports().map(one("transport")))?;
        let answers = counters.answers().map(|(source, code, count)| {
            (vec![("source", source.to_owned()), ("rcode", code.to_owned())], count)
        });
        counter(out, "dns_answers", "Answers, by where they come from and by code", answers)?;
        let help = "Questions that were dropped or refused, and answers that were lost";
        counter(out, "dns_drops", help, counters.drops().map(one("reason")))?;
        let help = "Answers that did not fit as a whole";
        counter(out, "dns_truncated", help, [(vec![], counters.truncated())])
    }

    fn durations(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counters = &self.0.handler.counters;
        let help = "From a question to its answer: here (path=local), or by somebody else";
        let mut family =
            out.encode_descriptor("dns_duration_seconds", help, None, MetricType::Histogram)?;
        for (path, times) in [("local", &counters.local), ("forwarded", &counters.forwarded)] {
            let labels = [("path", path)];
            let TimesRead { buckets, seconds, count } = Times::read(times);
            family
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)?;
        }
        Ok(())
    }

    fn forwarding(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let upstreams = self.0.handler.forwarder.routes().read();
        let labels = |one: &weir_dns::forward::UpstreamRead| {
            vec![("server", one.address.to_string()), ("domain", one.domain.clone())]
        };
        let up = upstreams.iter().map(|one| (labels(one), i64::from(one.up)));
        gauge(out, "dns_upstream_up", "Whether a server answers", up)?;
        let queries = upstreams.iter().map(|one| (labels(one), one.queries));
        counter(out, "dns_upstream_queries", "Questions to a server", queries)?;
        let failures = upstreams.iter().map(|one| (labels(one), one.failures));
        counter(out, "dns_upstream_failures", "Those without an answer", failures)?;
        let cache = self.0.handler.forwarder.read_cache(Instant::now());
        let help = "Others' answers that are remembered";
        gauge(out, "dns_cache_entries", help, [(vec![], signed(cache.entries))])?;
        gauge(out, "dns_cache_bytes", "Their bytes, roughly", [(vec![], signed(cache.bytes))])?;
        let hits = "Questions that were answered from the cache";
        counter(out, "dns_cache_hits", hits, [(vec![], cache.hits)])?;
        let misses = "Questions that others had to be asked";
        counter(out, "dns_cache_misses", misses, [(vec![], cache.misses)])
    }

    fn state(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
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
            gauge(out, name, help, [(vec![], value)])?;
        }
        Ok(())
    }
}

fn counter(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (Labels, u64)>,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, count) in series {
        if labels.is_empty() {
            return family.encode_counter::<NoLabelSet, _, u64>(&count, None);
        }
        family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
    }
    Ok(())
}

fn gauge(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (Labels, i64)>,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in series {
        if labels.is_empty() {
            return family.encode_gauge(&value);
        }
        family.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

fn signed(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
