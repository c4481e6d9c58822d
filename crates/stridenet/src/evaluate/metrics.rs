//! Sums over predictions, and what they come to.

use crate::kernels::{Context, loss};
use serde::{Deserialize, Serialize};

/// Running sums over batches of logits.
#[derive(Debug, Clone)]
pub struct Metrics {
    classes: usize,
    count: usize,
    loss: f64,
    top1: usize,
    top5: usize,
    confusion: Vec<Vec<u64>>,
    gradient: Vec<f32>,
}

/// How well a network predicts the labels of some images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Number of images.
    pub count: usize,
    /// Mean cross-entropy.
    pub loss: f64,
    /// Images whose label has the largest logit, in percent.
    pub top1: f64,
    /// Images whose label is among the five largest logits, in percent.
    pub top5: f64,
    /// Wilson's 95 % interval of `top1`, in percent.
    pub top1_ci95: [f64; 2],
    /// Images by label (row) and prediction (column).
    pub confusion: Vec<Vec<u64>>,
}

impl Metrics {
    /// No images yet, of `classes` classes.
    pub fn new(classes: usize) -> Self {
        let confusion = vec![vec![0; classes]; classes];
        Metrics { classes, count: 0, loss: 0.0, top1: 0, top5: 0, confusion, gradient: Vec::new() }
    }

    /// Adds a batch: logits `[N, classes]` and labels; returns the batch's mean loss.
    pub fn update(&mut self, cx: &Context, logits: &[f32], labels: &[usize], smoothing: f32) -> f64 {
        self.gradient.resize(logits.len(), 0.0);
        let mean =
            loss::softmax_cross_entropy(cx, self.classes, logits, labels, smoothing, &mut self.gradient);
        self.count += labels.len();
        self.loss += mean * labels.len() as f64;
        for (logits, &label) in logits.chunks_exact(self.classes).zip(labels) {
            let rank = loss::rank(logits, label);
            self.top1 += usize::from(rank == 0);
            self.top5 += usize::from(rank < 5);
            // `max_by` keeps the last of equals: seen backwards, the first.
            let best = logits.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1));
            self.confusion[label][best.map_or(0, |(class, _)| class)] += 1;
        }
        mean
    }

    /// Number of images so far.
    pub fn count(&self) -> usize {
        self.count
    }

    /// What the sums come to.
    pub fn finish(self) -> Evaluation {
        let images = self.count.max(1) as f64;
        Evaluation {
            count: self.count,
            loss: self.loss / images,
            top1: 100.0 * self.top1 as f64 / images,
            top5: 100.0 * self.top5 as f64 / images,
            top1_ci95: wilson_interval(self.top1, self.count).map(|share| 100.0 * share),
            confusion: self.confusion,
        }
    }
}

/// The 95 % score interval of a share of `hits` in `count` (Wilson 1927); `[0, 1]` where there is nothing.
pub fn wilson_interval(hits: usize, count: usize) -> [f64; 2] {
    if count == 0 {
        return [0.0, 1.0];
    }
    let (n, share, z) = (count as f64, hits as f64 / count as f64, 1.959_963_984_540_054_f64);
    let centre = share + z * z / (2.0 * n);
    let spread = z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    [((centre - spread) / scale).max(0.0), ((centre + spread) / scale).min(1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Level;

    #[test]
    fn counts_and_confusion_follow_the_logits() {
        let cx = Context::new(Level::detect(), 1);
        let mut metrics = Metrics::new(6);
        let logits = [
            [5.0, 0.0, 0.0, 0.0, 0.0, 0.0], // right
            [0.0, 5.0, 0.0, 0.0, 0.0, 0.0], // second at best: ties go to the lower index
            [5.0, 4.0, 3.0, 2.0, 1.0, 0.0], // sixth
        ];
        metrics.update(&cx, &logits.concat(), &[0, 2, 5], 0.0);
        let found = metrics.finish();
        assert_eq!(found.count, 3);
        assert!((found.top1 - 100.0 / 3.0).abs() < 1e-9 && (found.top5 - 200.0 / 3.0).abs() < 1e-9);
        assert_eq!((found.confusion[0][0], found.confusion[2][1], found.confusion[5][0]), (1, 1, 1));
    }

    /// Values of statsmodels' `proportion_confint(…, method="wilson")`.
    #[test]
    fn intervals_are_wilsons() {
        let close = |hits, count, expected: [f64; 2]| {
            let found = wilson_interval(hits, count);
            assert!(
                (found[0] - expected[0]).abs() < 1e-6 && (found[1] - expected[1]).abs() < 1e-6,
                "{found:?}"
            );
        };
        close(9, 10, [0.595_850_1, 0.982_123_8]);
        close(0, 10, [0.0, 0.277_532_8]);
        assert_eq!(wilson_interval(0, 0), [0.0, 1.0]);
    }
}
