//! Figures from several rounds.

use std::collections::BTreeMap;

use crate::metric::Metric;

/// What was measured, by metric.
#[derive(Default)]
pub(crate) struct Samples(BTreeMap<&'static str, Vec<f64>>);

impl Samples {
    /// One more round's.
    pub(crate) fn add(&mut self, metric: &Metric, value: f64) {
        self.0.entry(metric.name).or_default().push(value);
    }

    /// The median of the rounds.
    pub(crate) fn figure(&self, metric: &Metric) -> Option<f64> {
        median(self.0.get(metric.name)?)
    }
}

/// The middle one, or the mean of the two; `None` of nothing.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.get(sorted.len() / 2)?;
    let lower = sorted.get(sorted.len().checked_sub(1)? / 2)?;
    Some((lower + upper) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
