//! How quiet the machine is: figures of a busy one say little.

use std::fs;

use anyhow::Result;

use super::cipher;

/// CPU time of the whole machine so far, in ticks (proc_stat(5)).
struct Ticks {
    all: f64,
    stolen: f64,
    idle: f64,
}

impl Ticks {
    fn now() -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
        // user nice system idle iowait irq softirq steal; what guests take is in the first two as well.
        let values: Vec<f64> = fields.take(8).filter_map(|field| field.parse().ok()).collect();
        let at = |number: usize| values.get(number).copied().unwrap_or(0.0);
        Self { all: values.iter().sum(), stolen: at(7), idle: at(3) + at(4) }
    }
}

/// What the machine does meanwhile.
pub(super) struct Watch(Ticks);

impl Watch {
    /// From now on.
    pub(super) fn start() -> Self {
        Self(Ticks::now())
    }

    /// Says on stderr how loaded the machine is, and was since the start.
    pub(super) fn say(&self, section: &str) -> Result<()> {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().unwrap_or_default().to_owned();
        let (now, limit) = (Ticks::now(), cipher::limit()?);
        let all = (now.all - self.0.all).max(1.0);
        eprintln!(
            "bench: {section}: load {load}; since the start {:.1} % stolen, {:.0} % idle; a busy thread gets {:.0} % of a core",
            (now.stolen - self.0.stolen) / all * 100.0,
            (now.idle - self.0.idle) / all * 100.0,
            limit.share * 100.0,
        );
        Ok(())
    }
}
