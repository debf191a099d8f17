//! Metric families as plain values, and their way into prometheus-client's encoders.

use std::{sync::atomic::AtomicU64, time::SystemTime};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder, NoLabelSet},
    metrics::{MetricType, exemplar::CounterWithExemplar},
    registry::Unit,
};

use crate::audit::Histogram;

/// Label names are ours, label values come from the cluster.
pub(super) type Labels = Vec<(&'static str, String)>;

/// What a family's samples are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// What one series is now.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Value {
    Number(f64),
    /// A counter whose latest increment is named: only OpenMetrics has room for that.
    Named {
        total: f64,
        by: Labels,
        at: SystemTime,
    },
    Ranges(Histogram),
}

/// One metric family with its samples.
#[derive(Debug)]
pub(super) struct Family {
    /// Without `_total` and without the unit: the encoder appends both.
    pub name: &'static str,
    pub help: &'static str,
    pub unit: Option<Unit>,
    pub kind: Kind,
    pub samples: Vec<(Labels, Value)>,
}

impl Family {
    fn new(kind: Kind, name: &'static str, help: &'static str) -> Self {
        Self { name, help, unit: None, kind, samples: Vec::new() }
    }

    pub fn counter(name: &'static str, help: &'static str) -> Self {
        Self::new(Kind::Counter, name, help)
    }

    pub fn gauge(name: &'static str, help: &'static str) -> Self {
        Self::new(Kind::Gauge, name, help)
    }

    pub fn histogram(name: &'static str, help: &'static str) -> Self {
        Self::new(Kind::Histogram, name, help)
    }

    pub fn unit(self, unit: Unit) -> Self {
        Self { unit: Some(unit), ..self }
    }

    pub fn with(mut self, labels: Labels, value: f64) -> Self {
        self.samples.push((labels, Value::Number(value)));
        self
    }

    pub fn with_all(self, samples: impl IntoIterator<Item = (Labels, f64)>) -> Self {
        self.with_values(samples.into_iter().map(|(labels, value)| (labels, Value::Number(value))))
    }

    pub fn with_values(mut self, samples: impl IntoIterator<Item = (Labels, Value)>) -> Self {
        self.samples.extend(samples);
        self
    }
}

/// All families of one scrape.
#[derive(Debug)]
pub(super) struct Families(Vec<Family>);

impl Families {
    pub fn new(families: Vec<Family>) -> Self {
        Self(families)
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for family in &self.0 {
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut metric =
                encoder.encode_descriptor(family.name, family.help, family.unit.as_ref(), kind)?;
            for (labels, value) in &family.samples {
                encode(family.kind, value, metric.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

fn encode(kind: Kind, value: &Value, mut sample: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
    match value {
        Value::Number(value) if kind == Kind::Counter => {
            sample.encode_counter::<NoLabelSet, f64, f64>(value, None)
        }
        Value::Number(value) => sample.encode_gauge(value),
        Value::Named { total, by, at } => {
            let counter = CounterWithExemplar::<Labels, f64, AtomicU64>::default();
            // What is named is the last one of them.
            counter.inc_by(*total - 1.0, None, None);
            counter.inc_by(1.0, Some(by.clone()), Some(*at));
            counter.encode(sample)
        }
        Value::Ranges(histogram) => {
            let ranges: Vec<(f64, u64)> = histogram.ranges().collect();
            sample.encode_histogram::<NoLabelSet>(histogram.sum(), histogram.count(), &ranges, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{
        encoding::{prometheus_text, text},
        registry::Registry,
    };

    use super::*;

    #[test]
    fn a_histogram_ends_with_a_range_without_a_bound() {
        let mut times = Histogram::of_handshakes();
        times.observe(0.002);
        times.observe(100.0);
        let family = Family::histogram("h", "help").with_values([(vec![], Value::Ranges(times))]);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Families::new(vec![family])));
        let (mut plain, mut open) = (String::new(), String::new());
        prometheus_text::encode(&mut plain, &registry).unwrap();
        text::encode(&mut open, &registry).unwrap();
        for said in [plain, open] {
            // Without it Prometheus has no quantile of it.
            let buckets: Vec<&str> = said.lines().filter(|line| line.starts_with("h_bucket")).collect();
            assert_eq!(buckets.len(), 16, "{said}");
            assert_eq!(buckets.last(), Some(&"h_bucket{le=\"+Inf\"} 2"));
            assert!(buckets.contains(&"h_bucket{le=\"0.001\"} 0"), "{said}");
            assert!(buckets.contains(&"h_bucket{le=\"7.0\"} 1") || buckets.contains(&"h_bucket{le=\"7\"} 1"));
        }
    }
}
