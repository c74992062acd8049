//! Families of metrics, written one by one as they are at a scrape.

use std::fmt;

use prometheus_client::{
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};
use weir_loader::Counters;

/// Names and values; a series without labels is the only one of its family.
pub(super) type Labels<'a> = Vec<(&'static str, &'a str)>;

/// One of the counters of the data plane: its name, its help, and where it is read.
pub(super) type CounterOf = (&'static str, &'static str, fn(&Counters) -> u64);

/// Writes families.
pub(super) struct Out<'a, 'e>(pub(super) &'a mut DescriptorEncoder<'e>);

impl Out<'_, '_> {
    /// A counter; `_total` is added to its name.
    pub(super) fn counter<'l>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, count) in series {
            if labels.is_empty() {
                return family.encode_counter::<NoLabelSet, _, u64>(&count, None);
            }
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }

    /// A gauge.
    pub(super) fn gauge<'l>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels<'l>, i64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in series {
            if labels.is_empty() {
                return family.encode_gauge(&value);
            }
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }
}

/// A gauge's value; what is too large is the largest.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
