//! Batch norm folded into the convolution before it.

use crate::kernels::Context;
use crate::layer::Unit;

/// A convolution's weights (HWIO) and bias, with the batch norm's running statistics inside.
pub(super) struct Folded<'a> {
    pub(super) weight: &'a [f32],
    pub(super) bias: Vec<f32>,
}

/// Weights that a thread folds at a time.
const PIECE: usize = 1 << 15;

/// `γ (conv(x) − μ) / √(σ² + ε) + β = conv'(x) + b'` (Jacob et al. 2017, arXiv 1712.05877, §3.2), computed in `f64` and
/// rounded once. `space` holds the weights. Without a batch norm the weights are the convolution's, and the bias is 0.
pub(super) fn fold<'a>(cx: &Context, unit: &'a Unit, space: &'a mut Vec<f32>) -> Folded<'a> {
    let from = &unit.conv.weight.value;
    let Some(norm) = &unit.norm else {
        return Folded { weight: from, bias: vec![0.0; unit.conv.weight.shape[0]] };
    };
    let (scale, bias): (Vec<f64>, Vec<f32>) =
        norm.affine().map(|(scale, shift)| (scale, shift as f32)).unzip();
    if space.len() < from.len() {
        *space = vec![0.0; from.len()];
    }
    let weight = &mut space[..from.len()];
    let piece = PIECE.next_multiple_of(scale.len());
    cx.pool().pieces(weight, piece, |index, to| {
        let rows = from[index * piece..].chunks_exact(scale.len());
        for (to, from) in to.chunks_exact_mut(scale.len()).zip(rows) {
            for ((to, &from), scale) in to.iter_mut().zip(from).zip(&scale) {
                *to = (f64::from(from) * scale) as f32;
            }
        }
    });
    Folded { weight, bias }
}
