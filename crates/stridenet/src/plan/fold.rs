//! Batch norm folded into the convolution before it.

use crate::layer::Unit;

/// A convolution's weights (HWIO) and bias, with the batch norm's running statistics inside.
pub(super) struct Folded {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

/// `γ (conv(x) − μ) / √(σ² + ε) + β = conv'(x) + b'` (Jacob et al. 2017, arXiv 1712.05877, §3.2), computed in `f64` and
/// rounded once.
pub(super) fn fold(unit: &Unit) -> Folded {
    let (scale, bias): (Vec<f64>, Vec<f32>) =
        unit.norm.affine().map(|(scale, shift)| (scale, shift as f32)).unzip();
    let mut weight = unit.conv.weight.value.clone();
    for row in weight.chunks_exact_mut(scale.len()) {
        for (weight, scale) in row.iter_mut().zip(&scale) {
            *weight = (f64::from(*weight) * scale) as f32;
        }
    }
    Folded { weight, bias }
}
