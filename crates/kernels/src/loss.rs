//! Softmax and cross-entropy.

use crate::Context;

/// Rows whose losses are added up together.
const ROWS: usize = 512;

/// Rows that one task takes.
const PIECE: usize = 8;

/// Writes `softmax(logits)` of one row, and returns `ln Σ exp(logit)`; both in `f64` inside, as a row is short.
fn softmax_row(logits: &[f32], mut put: impl FnMut(usize, f64)) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let largest = f64::from(largest);
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
    for (class, &logit) in logits.iter().enumerate() {
        put(class, (f64::from(logit) - largest).exp() / sum);
    }
    largest + sum.ln()
}

/// Probabilities `[rows, classes]` of logits `[rows, classes]`.
///
/// # Panics
/// When lengths differ or `classes` is 0.
pub fn softmax(cx: &Context, classes: usize, logits: &[f32], probabilities: &mut [f32]) {
    assert_eq!(logits.len(), probabilities.len(), "a probability for each logit");
    cx.pool().pieces(probabilities, classes, |row, probabilities| {
        let logits = &logits[row * classes..][..classes];
        softmax_row(logits, |class, probability| probabilities[class] = probability as f32);
    });
}

/// Mean cross-entropy of logits `[rows, classes]` against `labels`, smoothed as in Szegedy et al. 2016 (§7): the target is
/// `1 − smoothing` on the label plus `smoothing / classes` on every class. Writes the gradient of the mean to `dlogits`.
///
/// Logits that are NaN give a NaN.
///
/// # Panics
/// When lengths do not fit or a label is not a class.
pub fn softmax_cross_entropy(
    cx: &Context,
    classes: usize,
    logits: &[f32],
    labels: &[usize],
    smoothing: f32,
    dlogits: &mut [f32],
) -> f64 {
    let rows = labels.len();
    assert_eq!(logits.len(), rows * classes, "a row of logits for each label");
    assert_eq!(dlogits.len(), logits.len(), "a gradient for each logit");
    assert!(labels.iter().all(|&label| label < classes), "labels below {classes}");
    let (smoothing, spread) = (f64::from(smoothing), f64::from(smoothing) / classes as f64);
    let mut total = 0.0;
    // The losses of some rows at a time, so that they need no memory of their own.
    let groups = dlogits.chunks_mut((ROWS * classes).max(1)).zip(logits.chunks((ROWS * classes).max(1)));
    for ((dlogits, logits), labels) in groups.zip(labels.chunks(ROWS)) {
        let mut losses = [0.0; ROWS];
        let losses = &mut losses[..labels.len()];
        cx.pool().pairs((&mut *losses, PIECE), (dlogits, PIECE * classes), |piece, losses, dlogits| {
            for (offset, (loss, dlogits)) in
                losses.iter_mut().zip(dlogits.chunks_exact_mut(classes)).enumerate()
            {
                let row = piece * PIECE + offset;
                let (logits, label) = (&logits[row * classes..][..classes], labels[row]);
                let log_sum = softmax_row(logits, |class, probability| {
                    let target = spread + if class == label { 1.0 - smoothing } else { 0.0 };
                    dlogits[class] = ((probability - target) / rows as f64) as f32;
                });
                let mean = logits.iter().map(|&logit| f64::from(logit)).sum::<f64>() / classes as f64;
                *loss = log_sum - (1.0 - smoothing) * f64::from(logits[label]) - smoothing * mean;
            }
        });
        total = losses.iter().fold(total, |total, loss| total + loss);
    }
    total / rows as f64
}

/// How many classes come before `label`: those with a larger logit, and those with an equal one and a lower index.
/// 0 is the best. A row with a NaN ranks its label last.
///
/// # Panics
/// When the label is not a class.
pub fn rank(logits: &[f32], label: usize) -> usize {
    let own = logits[label];
    if logits.iter().any(|logit| logit.is_nan()) {
        return logits.len() - 1;
    }
    let before = |(class, &logit): (usize, &f32)| logit > own || (logit == own && class < label);
    logits.iter().enumerate().filter(|&other| before(other)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;
    use crate::testing::Random;

    fn oracle(classes: usize, logits: &[f64], labels: &[usize], smoothing: f64) -> f64 {
        let rows = logits.chunks_exact(classes).zip(labels).map(|(row, &label)| {
            let sum: f64 = row.iter().map(|logit| logit.exp()).sum();
            let log = |class: usize| (row[class].exp() / sum).ln();
            let uniform = (0..classes).map(log).sum::<f64>() / classes as f64;
            -(1.0 - smoothing) * log(label) - smoothing * uniform
        });
        rows.sum::<f64>() / labels.len() as f64
    }

    #[test]
    fn loss_and_gradient_agree_with_the_definition() {
        let mut random = Random::new(21);
        let cx = Context::new(Level::detect(), 2);
        for round in 0..200 {
            let (rows, classes) =
                (1 + random.below(if round < 190 { 20 } else { 1500 }), 1 + random.below(30));
            let logits: Vec<f32> = random.values(rows * classes).iter().map(|value| value * 8.0).collect();
            let labels: Vec<usize> = (0..rows).map(|_| random.below(classes)).collect();
            let smoothing = [0.0, 0.1][random.below(2)];
            let mut gradient = vec![f32::NAN; logits.len()];
            let loss = softmax_cross_entropy(&cx, classes, &logits, &labels, smoothing, &mut gradient);
            let mut wide: Vec<f64> = logits.iter().map(|&logit| f64::from(logit)).collect();
            let smoothing = f64::from(smoothing);
            let expected = oracle(classes, &wide, &labels, smoothing);
            assert!((loss - expected).abs() < 1e-12 * (1.0 + expected), "{loss} {expected}");
            // Central differences: truncation of the order of step², rounding of eps / step.
            let (at, step) = (random.below(wide.len()), 1e-4);
            wide[at] += step;
            let up = oracle(classes, &wide, &labels, smoothing);
            wide[at] -= 2.0 * step;
            let slope = (up - oracle(classes, &wide, &labels, smoothing)) / (2.0 * step);
            assert!((f64::from(gradient[at]) - slope).abs() < 1e-7, "{} {slope}", gradient[at]);
        }
    }

    #[test]
    fn large_logits_do_not_overflow_and_nan_is_seen() {
        let cx = Context::new(Level::detect(), 1);
        let mut gradient = [0.0; 2];
        let loss = softmax_cross_entropy(&cx, 2, &[1e30, -1e30], &[0], 0.0, &mut gradient);
        assert_eq!((loss, gradient), (0.0, [0.0, 0.0]));
        assert!(softmax_cross_entropy(&cx, 2, &[f32::NAN, 0.0], &[1], 0.0, &mut gradient).is_nan());
    }

    #[test]
    fn probabilities_sum_to_one_and_ranks_break_ties_by_index() {
        let cx = Context::new(Level::detect(), 2);
        let mut probabilities = [0.0; 6];
        softmax(&cx, 3, &[1.0, 2.0, 3.0, -5.0, -5.0, -5.0], &mut probabilities);
        assert!((probabilities[2] - 0.665_240_94).abs() < 1e-6);
        assert!(probabilities[3..].iter().all(|&probability| (probability - 1.0 / 3.0).abs() < 1e-7));
        assert_eq!([0, 1, 2].map(|label| rank(&[2.0, 5.0, 2.0], label)), [1, 0, 2]);
        assert_eq!(rank(&[f32::NAN, 5.0], 1), 1);
    }
}
