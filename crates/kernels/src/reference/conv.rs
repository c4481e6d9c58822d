//! Convolution in plain loops and f64.

use crate::conv::ConvGeometry;

/// Calls `product(x index, weight index, y index)` for every product of the convolution of `images` images of
/// `input` `[height, width]` pixels.
fn each_product(g: &ConvGeometry, images: usize, input: [usize; 2], mut product: impl FnMut([usize; 3])) {
    let output = g.output_size(input).expect("the oracle is asked for valid shapes");
    for n in 0..images {
        for oy in 0..output[0] {
            for ox in 0..output[1] {
                for ky in 0..g.kernel[0] {
                    for kx in 0..g.kernel[1] {
                        let y = (oy * g.stride[0] + ky * g.dilation[0]) as isize - g.padding[0] as isize;
                        let x = (ox * g.stride[1] + kx * g.dilation[1]) as isize - g.padding[1] as isize;
                        if y < 0 || x < 0 || y >= input[0] as isize || x >= input[1] as isize {
                            continue;
                        }
                        let pixel = (n * input[0] + y as usize) * input[1] + x as usize;
                        for o in 0..g.out_channels {
                            let group = o / g.group_out();
                            for i in 0..g.group_in() {
                                product([
                                    pixel * g.in_channels + group * g.group_in() + i,
                                    ((ky * g.kernel[1] + kx) * g.group_in() + i) * g.out_channels + o,
                                    ((n * output[0] + oy) * output[1] + ox) * g.out_channels + o,
                                ]);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Number of outputs of `images` images.
pub(crate) fn output_len(g: &ConvGeometry, images: usize, input: [usize; 2]) -> usize {
    let output = g.output_size(input).expect("the oracle is asked for valid shapes");
    images * output[0] * output[1] * g.out_channels
}

/// `y = conv(x)`.
pub(crate) fn forward(g: &ConvGeometry, images: usize, input: [usize; 2], x: &[f64], w: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; output_len(g, images, input)];
    each_product(g, images, input, |[i, k, o]| y[o] += x[i] * w[k]);
    y
}

/// Gradient of the input.
pub(crate) fn grad_input(
    g: &ConvGeometry,
    images: usize,
    input: [usize; 2],
    dy: &[f64],
    w: &[f64],
) -> Vec<f64> {
    let mut dx = vec![0.0; images * input[0] * input[1] * g.in_channels];
    each_product(g, images, input, |[i, k, o]| dx[i] += dy[o] * w[k]);
    dx
}

/// Gradient of the weights.
pub(crate) fn grad_weight(
    g: &ConvGeometry,
    images: usize,
    input: [usize; 2],
    x: &[f64],
    dy: &[f64],
) -> Vec<f64> {
    let mut dw = vec![0.0; g.weight_len()];
    each_product(g, images, input, |[i, k, o]| dw[k] += x[i] * dy[o]);
    dw
}
