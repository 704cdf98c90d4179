//! What a collector writes: one family of samples after the other.

use std::fmt::Error;

use hdrhistogram::Histogram;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet,
};
use prometheus_client::metrics::MetricType;

pub(super) type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

pub(super) struct Sheet<'a>(pub(super) DescriptorEncoder<'a>);

impl Sheet<'_> {
    /// A counter; `_total` is added to its name.
    pub(super) fn counter<'l, const N: usize, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l, N>, V)>,
    ) -> Result<(), Error> {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            if N == 0 {
                family.encode_counter::<NoLabelSet, V, f64>(&value, None)?;
            } else {
                let mut sample = family.encode_family(&labels)?;
                sample.encode_counter::<NoLabelSet, V, f64>(&value, None)?;
            }
        }
        Ok(())
    }

    pub(super) fn gauge<'l, const N: usize, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l, N>, V)>,
    ) -> Result<(), Error> {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            if N == 0 {
                family.encode_gauge(&value)?;
            } else {
                family.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    /// A histogram whose values are `unit` times those that were recorded. Values count for the bucket in which their
    /// last digit lies: three digits are kept.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        help: &str,
        recorded: &Histogram<u64>,
        unit: f64,
        bounds: &[f64],
    ) -> Result<(), Error> {
        let mut buckets: Vec<(f64, u64)> = bounds.iter().map(|bound| (*bound, 0)).collect();
        buckets.push((f64::INFINITY, 0));
        let mut sum = 0.0;
        for step in recorded.iter_recorded() {
            let value = recorded.lowest_equivalent(step.value_iterated_to()) as f64 * unit;
            let count = step.count_at_value();
            sum += value * count as f64;
            let bucket = buckets.iter_mut().find(|(bound, _)| value <= *bound);
            if let Some((_, counted)) = bucket {
                *counted += count;
            }
        }
        self.0
            .encode_descriptor(name, help, None, MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(sum, recorded.len(), &buckets, None)
    }
}
