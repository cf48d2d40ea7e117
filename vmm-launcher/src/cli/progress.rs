//! What a start shows on standard error: a line for each stage and layer on a terminal, and one plain line at its end.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use nacre_protocols::host_agent::nacre::{PullState, layer_state, pull_state};

use crate::client::printable;

/// Most layers that get a line of their own.
const LINES_MAX: usize = 24;
const TICK: Duration = Duration::from_millis(100);

/// Drawn only on a terminal.
pub struct Progress {
    bars: MultiProgress,
    stage: Option<ProgressBar>,
    layers: HashMap<String, ProgressBar>,
    quiet: bool,
}

/// How long each stage took.
#[derive(Debug, Default, Clone)]
pub struct Timings {
    /// Until the agent answered.
    pub boot: Duration,
    /// Clock, network, sandbox.
    pub agent: Duration,
    pub pull: Duration,
    /// Create and start.
    pub start: Duration,
    pub layers: usize,
    pub present: usize,
    /// Compressed, in bytes.
    pub bytes: u64,
}

impl Progress {
    pub fn new(quiet: bool) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { bars: MultiProgress::with_draw_target(target), stage: None, layers: HashMap::new(), quiet }
    }

    /// The stage that goes on from now.
    pub fn stage(&mut self, text: &str) {
        self.clear();
        let bar = self.bars.add(ProgressBar::new_spinner());
        bar.set_style(style("{spinner} {msg} {elapsed}"));
        bar.set_message(text.to_owned());
        bar.enable_steady_tick(TICK);
        self.stage = Some(bar);
    }

    pub fn pull(&mut self, state: &PullState) {
        if let Some(stage) = &self.stage {
            stage.set_message(match state.stage() {
                pull_state::Stage::Resolving => "pull: manifest".to_owned(),
                _ if state.bytes_per_second > 0 => format!("pull: {}/s", megabytes(state.bytes_per_second)),
                _ => "pull".to_owned(),
            });
        }
        for layer in state.layers.iter().take(LINES_MAX) {
            let bars = &self.bars;
            let bar = self.layers.entry(layer.digest.clone()).or_insert_with(|| {
                let bar = bars.add(ProgressBar::new(layer.size));
                bar.set_style(style("  {prefix} {bar:24} {bytes:>10} / {total_bytes:<10} {msg}"));
                bar.set_prefix(short(&layer.digest));
                bar
            });
            bar.set_position(layer.fetched.min(layer.size));
            bar.set_message(match layer.stage() {
                layer_state::Stage::Waiting => "waiting".to_owned(),
                layer_state::Stage::Fetching => String::new(),
                layer_state::Stage::Checking => "there from before: checking it".to_owned(),
                layer_state::Stage::Stored => "verified".to_owned(),
            });
            if layer.done {
                bar.set_message(if layer.present { "there already" } else { "verified" });
                bar.finish();
            }
        }
    }

    /// A line that stays.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            let _ = self.bars.suspend(|| writeln!(std::io::stderr(), "nacre: {text}"));
        }
    }

    /// Takes every line away.
    pub fn clear(&mut self) {
        for (_, bar) in self.layers.drain() {
            bar.finish_and_clear();
        }
        if let Some(stage) = self.stage.take() {
            stage.finish_and_clear();
        }
        let _ = self.bars.clear();
    }

    /// The last line of a pull alone.
    pub fn pulled(mut self, timings: &Timings) {
        self.clear();
        if !self.quiet {
            let _ = writeln!(std::io::stderr(), "{}", timings.pull_part());
        }
    }

    /// The last line, on a terminal or not.
    pub fn done(mut self, timings: &Timings, fresh: bool) {
        self.clear();
        if !self.quiet {
            let _ = writeln!(std::io::stderr(), "{}", timings.line(fresh));
        }
    }
}

impl Timings {
    /// `fresh`: the sandbox was started for this.
    pub fn line(&self, fresh: bool) -> String {
        let boot = if fresh {
            format!("boot {} · agent {} · ", time(self.boot), time(self.agent))
        } else {
            String::new()
        };
        format!("{boot}{} · start {}", self.pull_part(), time(self.start))
    }

    fn pull_part(&self) -> String {
        let layers = if self.layers == 1 { "1 layer".to_owned() } else { format!("{} layers", self.layers) };
        let present =
            if self.present > 0 { format!(", {} there already", self.present) } else { String::new() };
        let (time, bytes) = (time(self.pull), megabytes(self.bytes));
        format!("pull {time} ({layers}, {bytes}{present}, verified in the sandbox)")
    }

    pub fn json(&self) -> serde_json::Value {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        serde_json::json!({
            "boot_ms": ms(self.boot),
            "agent_ms": ms(self.agent),
            "pull_ms": ms(self.pull),
            "start_ms": ms(self.start),
            "layers": self.layers,
            "layers_present": self.present,
            "compressed_bytes": self.bytes,
        })
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Twelve digits are enough to tell layers apart.
fn short(digest: &str) -> String {
    printable(digest.strip_prefix("sha256:").unwrap_or(digest), 12).trim_end_matches('…').to_owned()
}

fn time(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

pub fn megabytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{} kB", bytes / 1_000),
        1_000_000..10_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_has_every_stage() {
        let mut timings = Timings {
            boot: Duration::from_millis(1234),
            agent: Duration::from_micros(12_400),
            pull: Duration::from_millis(900),
            start: Duration::from_millis(9),
            layers: 3,
            present: 0,
            bytes: 28_300_000,
        };
        assert_eq!(
            timings.line(true),
            "boot 1.2 s · agent 12 ms · pull 900 ms (3 layers, 28 MB, verified in the sandbox) · start 9 ms"
        );
        (timings.layers, timings.present, timings.bytes) = (1, 1, 1_500_000);
        assert_eq!(
            timings.line(false),
            "pull 900 ms (1 layer, 1.5 MB, 1 there already, verified in the sandbox) · start 9 ms"
        );
    }
}
