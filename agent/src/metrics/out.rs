//! Families of metrics, written one by one as they are at a scrape.

use std::fmt;

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, NoLabelSet},
    metrics::MetricType,
};
use weir_loader::Counters;

/// Names and values of a series' labels.
pub(crate) type Labels<'a> = Vec<(&'static str, &'a str)>;

/// One of the counters of the data plane: its name, its help, and where it is read.
pub(super) type CounterOf = (&'static str, &'static str, fn(&Counters) -> u64);

/// Writes families. To the name of a counter `_total` is added.
pub(crate) struct Out<'a, 'e>(pub(crate) &'a mut DescriptorEncoder<'e>);

impl Out<'_, '_> {
    /// A counter with labels.
    pub(crate) fn counter<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, count) in series {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }

    /// A counter that is one number.
    pub(crate) fn count(&mut self, name: &str, help: &str, count: u64) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        family.encode_counter::<NoLabelSet, _, u64>(&count, None)
    }

    /// A gauge with labels.
    pub(crate) fn gauge<L: EncodeLabelSet, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in series {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// A gauge that is one number.
    pub(crate) fn value(&mut self, name: &str, help: &str, value: i64) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        family.encode_gauge(&value)
    }
}

/// A gauge's value; what is too large is the largest.
pub(crate) fn signed(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}
