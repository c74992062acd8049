//! What was measured, as ratios within a round, and what that says about the goals.

use std::fmt::Write as _;

use super::mode::Mode;
use crate::Spread;

/// A figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Requests a second on kept connections.
    Requests,
    /// Requests a second, each on a connection of its own.
    Connections,
    /// Megabits a second of one stream.
    Throughput,
    /// UDP packets a second, requests and answers.
    UdpPackets,
    /// Microseconds within which half of the requests were answered.
    Median,
    /// Microseconds within which 99 of 100 requests were answered.
    Slowest,
    /// Processor microseconds of the whole machine for a request on a kept connection.
    RequestCpu,
    /// The same for a request with a connection of its own.
    ConnectionCpu,
}

impl Measure {
    /// All, in the order of the table.
    pub const ALL: [Self; 8] = [
        Self::Requests,
        Self::Connections,
        Self::Throughput,
        Self::UdpPackets,
        Self::Median,
        Self::Slowest,
        Self::RequestCpu,
        Self::ConnectionCpu,
    ];

    /// The name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests/s, keep-alive",
            Self::Connections => "new connections/s",
            Self::Throughput => "throughput, Mbit/s",
            Self::UdpPackets => "UDP packets/s",
            Self::Median => "latency p50, us",
            Self::Slowest => "latency p99, us",
            Self::RequestCpu => "CPU us/request",
            Self::ConnectionCpu => "CPU us/new connection",
        }
    }

    /// Whether more is better: what the goals are about.
    fn is_rate(self) -> bool {
        matches!(self, Self::Requests | Self::Connections | Self::Throughput | Self::UdpPackets)
    }
}

/// One value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Of what.
    pub measure: Measure,
    /// Which way.
    pub mode: Mode,
    /// How much.
    pub value: f64,
}

/// At least `factor` times as much as `base`, in every rate.
struct Goal {
    mode: Mode,
    base: Mode,
    factor: f64,
}

const GOALS: [Goal; 5] = [
    Goal { mode: Mode::WeirLocal, base: Mode::Straight, factor: 1.0 },
    Goal { mode: Mode::WeirRemote, base: Mode::Vxlan, factor: 0.9 },
    Goal { mode: Mode::WeirLocal, base: Mode::Nftables, factor: 1.0 },
    Goal { mode: Mode::WeirLocal, base: Mode::Haproxy, factor: 2.0 },
    Goal { mode: Mode::WeirLocal, base: Mode::NginxStream, factor: 2.0 },
];

/// All samples, by round.
#[derive(Debug, Default)]
pub struct Results {
    rounds: Vec<Vec<Sample>>,
}

impl Results {
    /// Adds what one round gave.
    pub fn round(&mut self, samples: Vec<Sample>) {
        self.rounds.push(samples);
    }

    /// The spread of the values themselves.
    pub fn absolute(&self, measure: Measure, mode: Mode) -> Option<Spread> {
        spread(self.rounds.iter().filter_map(|round| find(round, measure, mode)))
    }

    /// The spread of the ratios of two modes in the same round.
    pub fn ratio(&self, measure: Measure, mode: Mode, base: Mode) -> Option<Spread> {
        let of =
            |round: &Vec<Sample>| Some(find(round, measure, mode)? / find(round, measure, base)?);
        spread(self.rounds.iter().filter_map(of))
    }

    /// A Markdown table: for each measure the median and, in each round, the ratio to straight.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for measure in Measure::ALL {
            let _ = writeln!(
                text,
                "\n| {:22} | {:>8} | {:20} |",
                measure.name(),
                "median",
                "x straight [min..max]"
            );
            let _ = writeln!(text, "|{:-<24}|{:->10}|{:-<23}|", "", ":", "");
            for mode in Mode::ALL {
                text += &self.row(measure, mode).unwrap_or_default();
            }
        }
        text
    }

    fn row(&self, measure: Measure, mode: Mode) -> Option<String> {
        let absolute = self.absolute(measure, mode)?.median;
        let ratio = self.ratio(measure, mode, Mode::Straight)?;
        let digits = if absolute < 100.0 { 1 } else { 0 };
        let ratio = format!("{ratio:.2}");
        Some(format!("| {:22} | {absolute:8.digits$} | {ratio:21} |\n", mode.name()))
    }

    /// A line for each goal and measure.
    pub fn verdicts(&self) -> String {
        let mut text = String::new();
        for goal in &GOALS {
            let name = format!("{} >= {:.1} x {}", goal.mode.name(), goal.factor, goal.base.name());
            for measure in Measure::ALL.into_iter().filter(|measure| measure.is_rate()) {
                let Some(ratio) = self.ratio(measure, goal.mode, goal.base) else { continue };
                let verdict = verdict(ratio, goal.factor);
                let shown = format!("{ratio:.2}");
                let _ = writeln!(
                    text,
                    "| {name:34} | {:22} | {shown:19} | {verdict} |",
                    measure.name()
                );
            }
        }
        text
    }
}

fn verdict(ratio: Spread, factor: f64) -> String {
    let short = factor - ratio.median;
    if short <= 0.0 {
        return "met".to_owned();
    }
    let noise = if ratio.high >= factor { ", within the spread" } else { "" };
    format!("missed by {short:.2}{noise}")
}

fn find(round: &[Sample], measure: Measure, mode: Mode) -> Option<f64> {
    let found = round.iter().find(|sample| sample.measure == measure && sample.mode == mode);
    found.map(|sample| sample.value)
}

fn spread(values: impl Iterator<Item = f64>) -> Option<Spread> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| Spread::of(values))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(pairs: &[(f64, f64)]) -> Results {
        let sample = |mode, value| Sample { measure: Measure::Requests, mode, value };
        let mut results = Results::default();
        for (straight, local) in pairs {
            results.round(vec![sample(Mode::Straight, *straight), sample(Mode::WeirLocal, *local)]);
        }
        results
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let results = results(&[(100.0, 90.0), (10.0, 11.0), (50.0, 50.0)]);
        let ratio = results.ratio(Measure::Requests, Mode::WeirLocal, Mode::Straight);
        assert_eq!(ratio, Some(Spread { median: 1.0, low: 0.9, high: 1.1 }));
        assert!(results.verdicts().contains("| met |"), "{}", results.verdicts());
    }

    #[test]
    fn a_miss_says_by_how_much() {
        let verdicts = results(&[(100.0, 80.0)]).verdicts();
        assert!(verdicts.contains("missed by 0.20 |"), "{verdicts}");
    }

    #[test]
    fn what_was_not_measured_is_not_shown() {
        assert_eq!(results(&[(1.0, 1.0)]).absolute(Measure::UdpPackets, Mode::Straight), None);
    }
}
