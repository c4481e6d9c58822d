//! The learning rate over a run.

use serde::{Deserialize, Serialize};

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decline {
    /// Half a cosine down to 0 (Loshchilov & Hutter 2017).
    Cosine,
    /// Not at all.
    Constant,
}

/// Learning rate by step: a linear warm-up from 0, then the decline.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The highest learning rate.
    pub lr: f64,
    /// Steps of the warm-up.
    pub warmup: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// What follows the warm-up.
    pub decline: Decline,
}

impl Schedule {
    /// The learning rate of step `step`, counted from 0.
    pub fn at(&self, step: usize) -> f32 {
        let rate = if step < self.warmup {
            self.lr * (step + 1) as f64 / self.warmup as f64
        } else {
            match self.decline {
                Decline::Constant => self.lr,
                Decline::Cosine => {
                    let length = self.steps.saturating_sub(self.warmup).max(1) as f64;
                    let share = ((step - self.warmup) as f64 / length).min(1.0);
                    self.lr * 0.5 * (1.0 + (std::f64::consts::PI * share).cos())
                }
            }
        };
        rate as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_rises_and_cosine_falls() {
        let schedule = Schedule { lr: 0.4, warmup: 4, steps: 12, decline: Decline::Cosine };
        assert_eq!([0, 1, 3, 4].map(|step| schedule.at(step)), [0.1, 0.2, 0.4, 0.4]);
        assert!((schedule.at(8) - 0.2).abs() < 1e-6);
        assert!((0..11).all(|step| step < 4 || schedule.at(step) > schedule.at(step + 1)));
        assert!(schedule.at(11) > 0.0 && schedule.at(12) < 1e-8);
        let constant = Schedule { decline: Decline::Constant, ..schedule };
        assert_eq!(constant.at(11), 0.4);
    }
}
