//! Steps of optimizers on a piece of a parameter, value by value, on the calling thread. Each operation is rounded by itself,
//! in one order: a step has the same bits at every level.

use crate::Level;
use crate::simd::{Simd, Task};

/// Partial sums of [`sum_of_squares`].
const SUMS: usize = 16;

/// A step of stochastic gradient descent, with PyTorch's meaning of each hyper-parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f32,
    /// Share of the velocity that is kept.
    pub momentum: f32,
    /// Whether the step is made along `gradient + momentum · velocity` instead of the velocity.
    pub nesterov: bool,
    /// L2 penalty: this times the value is added to the gradient.
    pub weight_decay: f32,
}

/// How the moments of Adam (Kingma & Ba 2015) move, and the direction that follows from them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moments {
    /// Weight of the gradient in its running mean, `1 − β₁`.
    pub newest: f32,
    /// Weight of the gradient's square in its running mean, `1 − β₂`.
    pub newest_square: f32,
    /// Share of the square's running mean that is kept, `β₂`.
    pub kept_square: f32,
    /// `1 − β₁ᵗ` at step t, which makes up for the mean's beginning at 0.
    pub correction: f32,
    /// `√(1 − β₂ᵗ)`.
    pub correction_square: f32,
    /// Added to the root of the corrected mean square.
    pub epsilon: f32,
}

/// The running means of a piece: of the gradient, and of its square.
#[derive(Debug)]
pub struct MomentsOf<'a> {
    /// Of the gradient.
    pub mean: &'a mut [f32],
    /// Of its square.
    pub square: &'a mut [f32],
}

/// What [`lamb_apply`] needs beside the moments.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lamb {
    /// The moments.
    pub moments: Moments,
    /// This times the value is added to the direction.
    pub weight_decay: f32,
}

/// Work on a piece, as a closure that a level compiles.
struct Piece<F>(F);

impl<R, F: FnOnce() -> R> Task for Piece<F> {
    type Output = R;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> R {
        (self.0)()
    }
}

/// `velocity = momentum · velocity + g` with `g = scale · grad + weight_decay · value`; then `value −= lr · velocity`, or with
/// Nesterov `lr · (g + momentum · velocity)`. Velocities begin as 0.
///
/// # Panics
/// When lengths differ.
pub fn sgd(level: Level, sgd: &Sgd, scale: f32, value: &mut [f32], grad: &[f32], velocity: &mut [f32]) {
    assert!(value.len() == grad.len() && value.len() == velocity.len(), "one gradient and velocity a value");
    let &Sgd { lr, momentum, nesterov, weight_decay } = sgd;
    level.run(Piece(
        #[inline(always)]
        || {
            for ((value, &grad), velocity) in value.iter_mut().zip(grad).zip(velocity) {
                let gradient = scale * grad + weight_decay * *value;
                *velocity = momentum * *velocity + gradient;
                let step = if nesterov { gradient + momentum * *velocity } else { *velocity };
                *value -= lr * step;
            }
        },
    ));
}

impl Moments {
    /// Moves the means by a gradient.
    #[inline(always)]
    fn moved(&self, gradient: f32, mean: &mut f32, square: &mut f32) {
        *mean += self.newest * (gradient - *mean);
        *square = self.kept_square * *square + self.newest_square * (gradient * gradient);
    }

    /// The corrected mean over the root of the corrected mean square.
    #[inline(always)]
    fn direction(&self, mean: f32, square: f32) -> f32 {
        (mean / self.correction) / (square.sqrt() / self.correction_square + self.epsilon)
    }
}

/// AdamW (Loshchilov & Hutter 2019): `value −= lr · weight_decay · value`, then `lr` times the direction of the moments, which
/// `scale · grad` has moved before.
///
/// # Panics
/// When lengths differ.
pub fn adamw(
    level: Level,
    moments: &Moments,
    [lr, weight_decay]: [f32; 2],
    scale: f32,
    value: &mut [f32],
    grad: &[f32],
    of: MomentsOf,
) {
    let MomentsOf { mean, square } = of;
    assert!(value.len() == grad.len() && value.len() == mean.len(), "one gradient and mean a value");
    assert_eq!(value.len(), square.len(), "one mean square a value");
    let (moments, kept) = (*moments, 1.0 - lr * weight_decay);
    level.run(Piece(
        #[inline(always)]
        || {
            for (((value, &grad), mean), square) in value.iter_mut().zip(grad).zip(mean).zip(square) {
                moments.moved(scale * grad, mean, square);
                *value = kept * *value - lr * moments.direction(*mean, *square);
            }
        },
    ));
}

/// The first half of LAMB (You et al. 2020): moves the moments by `scale · grad`, and returns the sums of squares of the
/// values and of the directions that [`lamb_apply`] will go.
///
/// # Panics
/// When lengths differ.
pub fn lamb_move(
    level: Level,
    lamb: &Lamb,
    scale: f32,
    value: &[f32],
    grad: &[f32],
    of: MomentsOf,
) -> [f64; 2] {
    let MomentsOf { mean, square } = of;
    assert!(value.len() == grad.len() && value.len() == mean.len(), "one gradient and mean a value");
    assert_eq!(value.len(), square.len(), "one mean square a value");
    let Lamb { moments, weight_decay } = *lamb;
    let values = sum_of_squares(level, value);
    let directions = level.run(Piece(
        #[inline(always)]
        || {
            let mut sums = [0.0; SUMS];
            let parts = value.chunks(SUMS).zip(grad.chunks(SUMS));
            let states = mean.chunks_mut(SUMS).zip(square.chunks_mut(SUMS));
            for ((value, grad), (mean, square)) in parts.zip(states) {
                let states = mean.iter_mut().zip(square).zip(value.iter().zip(grad));
                for (sum, ((mean, square), (value, grad))) in sums.iter_mut().zip(states) {
                    moments.moved(scale * grad, mean, square);
                    let direction = moments.direction(*mean, *square) + weight_decay * value;
                    *sum += f64::from(direction) * f64::from(direction);
                }
            }
            sums
        },
    ));
    [values, directions.iter().sum()]
}

/// The second half of LAMB: `value −= rate · (direction + weight_decay · value)`, where `rate` is the learning rate times the
/// layer's trust ratio.
///
/// # Panics
/// When lengths differ.
pub fn lamb_apply(level: Level, lamb: &Lamb, rate: f32, value: &mut [f32], mean: &[f32], square: &[f32]) {
    assert!(value.len() == mean.len() && value.len() == square.len(), "two means a value");
    let Lamb { moments, weight_decay } = *lamb;
    level.run(Piece(
        #[inline(always)]
        || {
            for ((value, &mean), &square) in value.iter_mut().zip(mean).zip(square) {
                *value -= rate * (moments.direction(mean, square) + weight_decay * *value);
            }
        },
    ));
}

/// `Σ value²` in `f64`: sixteen partial sums, in the values' order, and their sum.
pub fn sum_of_squares(level: Level, values: &[f32]) -> f64 {
    let sums = level.run(Piece(
        #[inline(always)]
        || {
            let mut sums = [0.0; SUMS];
            for values in values.chunks(SUMS) {
                let squares = values.iter().map(|&value| f64::from(value) * f64::from(value));
                sums.iter_mut().zip(squares).for_each(|(sum, square)| *sum += square);
            }
            sums
        },
    ));
    sums.iter().sum()
}

/// `average += weight · (value − average)`, from the nearer end as PyTorch's `lerp` computes it.
///
/// # Panics
/// When lengths differ.
pub fn move_average(level: Level, weight: f32, value: &[f32], average: &mut [f32]) {
    assert_eq!(value.len(), average.len(), "an average for each value");
    level.run(Piece(
        #[inline(always)]
        || {
            let pairs = average.iter_mut().zip(value);
            if weight < 0.5 {
                pairs.for_each(|(average, &value)| *average += weight * (value - *average));
            } else {
                pairs.for_each(|(average, &value)| *average = value - (value - *average) * (1.0 - weight));
            }
        },
    ));
}

/// `to += from`.
///
/// # Panics
/// When lengths differ.
pub fn add(level: Level, from: &[f32], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "as many values in each");
    level.run(Piece(
        #[inline(always)]
        || to.iter_mut().zip(from).for_each(|(to, from)| *to += from),
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    /// A dozen roundings of values below 4.
    const TOLERANCE: f64 = 48.0 * 6e-8;

    fn close(found: &[f32], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < TOLERANCE, "{found} {expected}");
        }
    }

    fn wide(values: &[f32]) -> Vec<f64> {
        values.iter().map(|&value| f64::from(value)).collect()
    }

    /// Runs `steps` from the same beginning at every level, checks that the bits agree, and returns the scalar level's values.
    fn at_every_level(steps: impl Fn(Level, &mut [f32])) -> (Vec<f32>, Vec<f32>) {
        let before = Random::new(31).values(1003);
        let after = |level| {
            let mut value = before.clone();
            steps(level, &mut value);
            value
        };
        let levels = Level::available();
        let first = after(levels[0]);
        assert!(levels.iter().all(|&level| after(level) == first), "levels differ");
        (before, first)
    }

    fn gradient(step: usize) -> Vec<f32> {
        Random::new(100 + step as u64).values(1003)
    }

    /// PyTorch's documented update, in f64 and one value at a time.
    #[test]
    fn sgd_follows_the_published_rule() {
        for nesterov in [false, true] {
            let rule = Sgd { lr: 0.1, momentum: 0.9, nesterov, weight_decay: 0.01 };
            let (before, after) = at_every_level(|level, value| {
                let mut velocity = vec![0.0; value.len()];
                (0..3).for_each(|step| sgd(level, &rule, 0.5, value, &gradient(step), &mut velocity));
            });
            let (mut value, mut velocity) = (wide(&before), vec![0.0; before.len()]);
            for step in 0..3 {
                for ((value, velocity), grad) in
                    value.iter_mut().zip(&mut velocity).zip(wide(&gradient(step)))
                {
                    let g = 0.5 * grad + 0.01 * *value;
                    *velocity = 0.9 * *velocity + g;
                    *value -= 0.1 * if nesterov { g + 0.9 * *velocity } else { *velocity };
                }
            }
            close(&after, &value);
        }
    }

    fn moments(step: i32) -> Moments {
        let corrections = [1.0 - 0.9f64.powi(step), (1.0 - 0.99f64.powi(step)).sqrt()];
        Moments {
            newest: 1.0 - 0.9,
            newest_square: 1.0 - 0.99,
            kept_square: 0.99,
            correction: corrections[0] as f32,
            correction_square: corrections[1] as f32,
            epsilon: 1e-3,
        }
    }

    /// Algorithm 2 of Loshchilov & Hutter 2019 and algorithm 2 of You et al. 2020, in f64.
    #[test]
    fn adamw_and_lamb_follow_their_papers() {
        for lamb in [false, true] {
            let (before, after) = at_every_level(|level, value| {
                let (mut mean, mut square) = (vec![0.0; value.len()], vec![0.0; value.len()]);
                for step in 0..3 {
                    let of = MomentsOf { mean: &mut mean, square: &mut square };
                    let (moments, grad) = (moments(step as i32 + 1), gradient(step));
                    if lamb {
                        let rule = Lamb { moments, weight_decay: 0.02 };
                        let [values, directions] = lamb_move(level, &rule, 0.5, value, &grad, of);
                        let rate = 0.1 * (values / directions).sqrt() as f32;
                        lamb_apply(level, &rule, rate, value, &mean, &square);
                    } else {
                        adamw(level, &moments, [0.1, 0.02], 0.5, value, &grad, of);
                    }
                }
            });
            let mut value = wide(&before);
            let (mut mean, mut square) = (vec![0.0; value.len()], vec![0.0; value.len()]);
            for step in 0..3 {
                let power = step as i32 + 1;
                let mut direction = Vec::new();
                for ((mean, square), grad) in mean.iter_mut().zip(&mut square).zip(wide(&gradient(step))) {
                    let g = 0.5 * grad;
                    *mean = 0.9 * *mean + 0.1 * g;
                    *square = 0.99 * *square + 0.01 * g * g;
                    let corrected = *square / (1.0 - 0.99f64.powi(power));
                    direction.push(*mean / (1.0 - 0.9f64.powi(power)) / (corrected.sqrt() + 1e-3));
                }
                let norm = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>().sqrt();
                let sums: Vec<f64> =
                    direction.iter().zip(&value).map(|(step, value)| step + 0.02 * value).collect();
                let trust = if lamb { norm(&value) / norm(&sums) } else { 1.0 };
                value.iter_mut().zip(sums).for_each(|(value, step)| *value -= 0.1 * trust * step);
            }
            close(&after, &value);
        }
    }

    #[test]
    fn averages_sums_and_norms() {
        let (value, mut average) = (Random::new(1).values(77), Random::new(2).values(77));
        for level in Level::available() {
            for weight in [0.0f32, 0.3, 0.8, 1.0] {
                let (mut found, w) = (average.clone(), f64::from(weight));
                move_average(level, weight, &value, &mut found);
                let between =
                    wide(&average).iter().zip(wide(&value)).map(|(a, v)| a + w * (v - a)).collect::<Vec<_>>();
                close(&found, &between);
            }
            let expected: f64 = wide(&value).iter().map(|value| value * value).sum();
            assert!((sum_of_squares(level, &value) - expected).abs() < 1e-13 * expected);
        }
        let expected: Vec<f32> = value.iter().zip(&average).map(|(a, b)| a + b).collect();
        add(Level::detect(), &value, &mut average);
        assert_eq!(average, expected);
    }
}
