//! How far sums of such operands may be from those of the oracle.

use crate::bf16::{self, Operands};
use crate::conv::ConvGeometry;
use crate::reference::conv as oracle;
use crate::testing::widen;

/// Asserts that each value is within the rounding that a sum of `terms` products can have in any order:
/// `|error| ≤ γ·Σ|a·b|` with `γ = (terms + 2)·eps` (Higham, Accuracy and Stability of Numerical Algorithms, §3.1);
/// `magnitude` holds the sums of absolute products.
pub(super) fn assert_close(found: &[f32], expected: &[f64], magnitude: &[f64], terms: usize, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let gamma = (terms as f64 + 2.0) * f64::from(f32::EPSILON);
    for (index, (&found, (&expected, &magnitude))) in
        found.iter().zip(expected.iter().zip(magnitude)).enumerate()
    {
        let error = (f64::from(found) - expected).abs();
        assert!(error <= gamma * magnitude, "{what}: [{index}] is {found}, expected {expected}");
    }
}

/// What bounds the error of a sum of threes as the sum of its absolute products does that of others, and the number of its terms. A
/// step of it is `(a + f·b)·(f·b' + a') / f`, where the factor f is 1/2, 1 or 2 for values of the same size: not more than the products
/// and `a² + b²` of each. `squares` are sums of those; what is taken off has errors of its own.
pub(super) fn with_squares(
    operands: Operands,
    magnitude: &[f64],
    terms: usize,
    squares: &[f64],
) -> (Vec<f64>, usize) {
    match operands {
        Operands::F32 | Operands::Bf16 => (magnitude.to_vec(), terms),
        Operands::Threes => {
            (magnitude.iter().zip(squares).map(|(a, b)| a + 2.0 * b).collect(), 2 * terms + 6)
        }
    }
}

/// For each output, input and weight, in this order: the sum of the squares of both sides over all that its sum may read.
pub(super) fn sums_of_squares(
    g: &ConvGeometry,
    (batch, input): (usize, [usize; 2]),
    [x, w, dy]: [&[f64]; 3],
) -> [Vec<f64>; 3] {
    let squared = |values: &[f64]| values.iter().map(|value| value * value).collect::<Vec<_>>();
    let ones = |values: &[f64]| vec![1.0; values.len()];
    let (x2, w2, dy2) = (squared(x), squared(w), squared(dy));
    // Padding meets weights, too: their squares are those of all that a channel has.
    let of_group = |channel: usize, channels: usize| channel / (channels / g.groups);
    let of_output = |output: usize| -> f64 { w2.iter().skip(output).step_by(g.out_channels).sum() };
    let of_input = |input: usize| -> f64 {
        let (group, inside) = (of_group(input, g.in_channels), input % g.group_in());
        let rows = w2.chunks(g.out_channels).skip(inside).step_by(g.group_in());
        rows.map(|row| row[group * g.group_out()..][..g.group_out()].iter().sum::<f64>()).sum()
    };
    let of_gradient = |output: usize| -> f64 { dy2.iter().skip(output).step_by(g.out_channels).sum() };
    let add = |sums: Vec<f64>, channels: usize, of: &dyn Fn(usize) -> f64| {
        let of: Vec<f64> = (0..channels).map(of).collect();
        sums.iter().enumerate().map(|(at, sum)| sum + of[at % channels]).collect()
    };
    let (ow, ody) = (ones(w), ones(dy));
    [
        add(oracle::forward(g, batch, input, &x2, &ow), g.out_channels, &of_output),
        add(oracle::grad_input(g, batch, input, &dy2, &ow), g.in_channels, &of_input),
        add(oracle::grad_weight(g, batch, input, &x2, &ody), g.out_channels, &of_gradient),
    ]
}

pub(super) fn absolute(values: &[f64]) -> Vec<f64> {
    values.iter().map(|value| value.abs()).collect()
}

/// The values that products see.
pub(super) fn seen(operands: Operands, values: &[f32]) -> Vec<f64> {
    match operands {
        Operands::F32 | Operands::Threes => widen(values),
        Operands::Bf16 => {
            values.iter().map(|&value| f64::from(bf16::to_f32(bf16::from_f32(value)))).collect()
        }
    }
}
