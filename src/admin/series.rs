//! Builds the input of the text encoder: metric families with labels and values.
//!
//! Knows the types of the `prometheus` crate. `scrape.rs` knows the sources of the numbers. The
//! crate is used as registry and encoder only: its own counters are shared by all threads, and ours
//! are not (`telemetry/metrics.rs`).

use prometheus::{
    core::Desc,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

use super::families::{MetricKind, MetricSpec};
use crate::{
    reason::Reason,
    telemetry::metrics::{self, BUCKETS_MICROS},
};

/// Descriptor of `family`. The registry compares every series with it.
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

/// Families that were collected so far.
#[derive(Default)]
pub(super) struct MetricFamilies {
    pub(super) families: Vec<MetricFamily>,
}

impl MetricFamilies {
    /// Adds a family with the series that `fill` adds to it.
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

/// Series of one family.
pub(super) struct SeriesBuilder {
    family: MetricSpec,
    metrics: Vec<Metric>,
}

impl SeriesBuilder {
    fn labelled(&self, values: &[&str]) -> Metric {
        debug_assert_eq!(self.family.labels.len(), values.len());
        let pair = |(name, value): (&&str, &&str)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        };
        Metric::from_label(self.family.labels.iter().zip(values).map(pair).collect())
    }

    /// Adds one series. `labels` are the values in the order of the family's labels.
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

    /// Adds one series with a whole number. It is exact up to 2^53: Prometheus has only `f64`.
    pub(super) fn count(&mut self, labels: &[&str], value: u64) {
        self.add(labels, value as f64);
    }

    /// Adds one series for each reason that occurred. `head` are the labels before the reason.
    ///
    /// All reasons of all backends would be most of the page, and nearly all of them 0.
    pub(super) fn reasons(&mut self, head: &[&str], count: impl Fn(Reason) -> u64) {
        for reason in Reason::ALL {
            let value = count(*reason);
            if value > 0 {
                let labels: Vec<&str> = head.iter().copied().chain([reason.name()]).collect();
                self.count(&labels, value);
            }
        }
    }

    /// Adds a histogram that is the sum of `parts`, unless it is empty.
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
        // Prometheus counts each bucket with all smaller ones.
        let mut below = 0;
        let bucket = |(count, bound): (&u64, &u64)| {
            below += count;
            let mut bucket = Bucket::default();
            bucket.set_cumulative_count(below);
            bucket.set_upper_bound(*bound as f64 / 1e6);
            bucket
        };
        // Without the bucket `+Inf`: the encoder adds it.
        let mut histogram = Histogram::default();
        histogram.set_bucket(counts.iter().zip(&BUCKETS_MICROS).map(bucket).collect());
        histogram.set_sample_count(total);
        histogram.set_sample_sum(sum_micros as f64 / 1e6);
        let mut metric = self.labelled(labels);
        metric.set_histogram(histogram);
        self.metrics.push(metric);
    }
}
