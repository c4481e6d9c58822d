//! Batch norms put into convolutions, and taken out of them again.

use super::dag::NormParts;
use crate::layer::EPSILON;
use crate::weights::{StateDict, TensorEntry};

/// A network's tensors by their names.
pub(super) struct Weights<'a>(pub(super) &'a StateDict);

impl<'a> Weights<'a> {
    pub(super) fn get(&self, name: &str) -> Result<&'a [f32], String> {
        self.0
            .get(name)
            .and_then(TensorEntry::as_f32)
            .ok_or_else(|| format!("the network has no tensor {name}"))
    }
}

/// A batch norm as a factor and a term for each channel.
pub(super) struct Fold {
    scale: Vec<f64>,
    shift: Vec<f64>,
}

impl Fold {
    pub(super) fn new(weights: &Weights, norm: &NormParts<String>) -> Result<Self, String> {
        let [gamma, beta] = [weights.get(&norm.weight)?, weights.get(&norm.bias)?];
        let [mean, var] = [weights.get(&norm.mean)?, weights.get(&norm.var)?];
        let deviation = |&var: &f32| (f64::from(var) + f64::from(norm.epsilon)).sqrt();
        let scale: Vec<f64> =
            gamma.iter().zip(var).map(|(&gamma, var)| f64::from(gamma) / deviation(var)).collect();
        let terms = beta.iter().zip(mean).zip(&scale);
        let shift = terms.map(|((&beta, &mean), scale)| f64::from(beta) - f64::from(mean) * scale).collect();
        Ok(Fold { scale, shift })
    }

    /// A convolution's weights, OIHW, times the factors; rounded once.
    pub(super) fn weights(&self, weights: &[f32]) -> Vec<f32> {
        let filters = weights.chunks_exact((weights.len() / self.scale.len()).max(1)).zip(&self.scale);
        filters
            .flat_map(|(filter, &scale)| filter.iter().map(move |&value| (f64::from(value) * scale) as f32))
            .collect()
    }

    pub(super) fn bias(&self) -> Vec<f32> {
        self.shift.iter().map(|&shift| shift as f32).collect()
    }
}

/// The values of a batch norm that adds `bias` and changes nothing else: weight, bias, running mean and variance.
///
/// The factor is `weight / √(var + ε)`. With the weight 1 and the variance 1 − ε it is 1 in f32, and within 3·10⁻⁸ of 1 in
/// f64; with the variance 1 the weight would have to carry a root that f32 rounds worse. A network with such norms computes
/// what the file computes. Trained further, it begins from statistics that are not those of its convolutions, which the
/// file no longer has.
pub(super) fn identity(bias: Vec<f32>) -> [Vec<f32>; 4] {
    let channels = bias.len();
    [vec![1.0; channels], bias, vec![0.0; channels], vec![1.0 - EPSILON; channels]]
}

/// A running variance that gives with the network's ε what `var` gives with `epsilon`.
pub(super) fn with_our_epsilon(var: f32, epsilon: f32) -> f32 {
    match epsilon == EPSILON {
        true => var,
        false => (f64::from(var) + f64::from(epsilon) - f64::from(EPSILON)) as f32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_that_is_left_has_the_factor_one() {
        let [weight, bias, mean, var] = identity(vec![0.25, -3.0]);
        assert_eq!((weight, bias, mean), (vec![1.0; 2], vec![0.25, -3.0], vec![0.0; 2]));
        assert_eq!(1.0 / (var[0] + EPSILON).sqrt(), 1.0);
        let factor = 1.0 / (f64::from(var[0]) + f64::from(EPSILON)).sqrt();
        // Half a unit in the last place of a number below 1.
        assert!((factor - 1.0).abs() < f64::from(f32::EPSILON) / 4.0, "{factor}");
    }

    #[test]
    fn another_epsilon_moves_into_the_variance() {
        assert_eq!(with_our_epsilon(0.3, 1e-5), 0.3);
        let var = with_our_epsilon(0.3, 1e-3);
        assert!((f64::from(var) + 1e-5 - 0.301).abs() < 1e-7);
    }
}
