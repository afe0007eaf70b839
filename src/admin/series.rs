//! Builds what the text encoder reads: families of series with their labels and values.
//!
//! Knows the shape of the crate's objects and the table of families; where the numbers come from is `scrape.rs`'s matter.

use prometheus::{
    core::Desc,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

use super::families::{MetricKind, MetricSpec};
use crate::{
    reason::Reason,
    telemetry::metrics::{self, BUCKETS_MICROS},
};

/// What the registry holds every series of `family` against.
pub(super) fn describe(family: &MetricSpec) -> prometheus::Result<Desc> {
    let labels = family.labels.iter().map(ToString::to_string).collect();
    let no_constants = std::collections::HashMap::new();
    Desc::new(
        family.name.to_owned(),
        family.help.to_owned(),
        labels,
        no_constants,
    )
}

/// The families so far.
#[derive(Default)]
pub(super) struct MetricFamilies {
    pub(super) families: Vec<MetricFamily>,
}

impl MetricFamilies {
    /// Adds a family with the series that `fill` makes.
    pub(super) fn family(&mut self, family: MetricSpec, fill: impl FnOnce(&mut SeriesBuilder)) {
        let mut series = SeriesBuilder {
            family,
            metrics: Vec::new(),
        };
        fill(&mut series);
        let mut built = MetricFamily::default();
        built.set_name(family.name.to_owned());
        built.set_help(family.help.to_owned());
        built.set_field_type(match family.kind {
            MetricKind::Counter => MetricType::COUNTER,
            MetricKind::Gauge => MetricType::GAUGE,
            MetricKind::Histogram => MetricType::HISTOGRAM,
        });
        built.set_metric(series.metrics);
        self.families.push(built);
    }
}

/// The series of one family.
pub(super) struct SeriesBuilder {
    family: MetricSpec,
    metrics: Vec<Metric>,
}

impl SeriesBuilder {
    fn labelled(&self, values: &[&str]) -> Metric {
        let pair = |(name, value): (&&str, &&str)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        };
        Metric::from_label(self.family.labels.iter().zip(values).map(pair).collect())
    }

    /// One series; `labels` are the values in the order of the family's labels.
    pub(super) fn add(&mut self, labels: &[&str], value: f64) {
        let mut metric = self.labelled(labels);
        if self.family.kind == MetricKind::Counter {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.metrics.push(metric);
    }

    /// One series of a whole number; exact up to 2^53, as all numbers of Prometheus.
    pub(super) fn count(&mut self, labels: &[&str], value: u64) {
        self.add(labels, value as f64);
    }

    /// One series per reason that occurred; `head` are the labels before the reason.
    pub(super) fn reasons(&mut self, head: &[&str], count: impl Fn(Reason) -> u64) {
        for reason in Reason::ALL {
            let value = count(*reason);
            if value > 0 {
                let labels: Vec<&str> = head.iter().copied().chain([reason.name()]).collect();
                self.count(&labels, value);
            }
        }
    }

    /// A distribution; left out while it is empty.
    pub(super) fn distribution<'a>(
        &mut self,
        labels: &[&str],
        parts: impl Iterator<Item = &'a metrics::TimeHistogram>,
    ) {
        let mut counts = [0_u64; BUCKETS_MICROS.len() + 1];
        let mut sum_micros = 0_u64;
        for part in parts {
            for (sum, count) in counts.iter_mut().zip(&part.buckets) {
                *sum += count.get();
            }
            sum_micros = sum_micros.wrapping_add(part.sum_micros.get());
        }
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return;
        }
        let mut below = 0;
        let bucket = |(count, bound): (&u64, &u64)| {
            below += count;
            let mut bucket = Bucket::default();
            bucket.set_cumulative_count(below);
            bucket.set_upper_bound(*bound as f64 / 1e6);
            bucket
        };
        // The encoder adds the bucket above all itself.
        let mut histogram = Histogram::default();
        histogram.set_bucket(counts.iter().zip(&BUCKETS_MICROS).map(bucket).collect());
        histogram.set_sample_count(total);
        histogram.set_sample_sum(sum_micros as f64 / 1e6);
        let mut metric = self.labelled(labels);
        metric.set_histogram(histogram);
        self.metrics.push(metric);
    }
}
