//! A convolution without bias: a batch norm always follows.

use super::{Activation, Parameter, Workspace};
use crate::Tensor;
use crate::algorithm::{Pass, for_training, operands_for_training, operands_of_tiles};
use crate::kernels::conv::{self, ConvGeometry, FastConv, GeometryError};
use crate::kernels::gemm::{Epilogue, Residual};
use crate::kernels::{Context, Follow, Level, Operands};

/// Multiply-adds for a value of the output up to which one that the backward pass reads is computed again rather than kept: of
/// projections with stride from few channels, where feature maps are large.
const CHEAP: usize = 64;

/// A convolution for one input size. Its weights are packed when a pass runs, in memory that all layers share.
#[derive(Debug)]
pub struct Conv {
    kernel: conv::Conv,
    /// The weights.
    pub weight: Parameter,
    /// Operands of the direct sums of training.
    operands: Operands,
    fast: FastPasses,
}

/// The passes of training that a fast algorithm makes.
#[derive(Debug)]
struct FastPasses {
    forward: Option<FastConv>,
    backward: Option<FastConv>,
    weights: Option<FastConv>,
}

impl FastPasses {
    /// Those that are faster than the direct sums of `kernel` with such operands.
    fn new(level: Level, kernel: &conv::Conv, operands: Operands) -> Result<Self, GeometryError> {
        let (&geometry, input) = (kernel.geometry(), kernel.input());
        let fast = |pass| {
            let tiling = for_training(level, &geometry, input, pass, operands);
            tiling.map(|tiling| FastConv::new(level, tiling, geometry, input)).transpose()
        };
        let tiles = operands_of_tiles(level, &geometry, operands);
        let backward = FastConv::turned(&geometry)
            .and_then(|turned| for_training(level, &turned, kernel.output(), Pass::Through, operands))
            .and_then(|tiling| FastConv::grad_input(level, tiling, geometry, input));
        let in_threes = |conv: FastConv| conv.with_operands(tiles);
        let forward = fast(Pass::Through)?.map(in_threes);
        Ok(FastPasses { forward, backward: backward.map(in_threes), weights: fast(Pass::Weights)? })
    }
}

/// What adds a tensor to each result.
fn adding(tensor: Option<&Tensor>) -> Epilogue<'_> {
    Epilogue { residual: tensor.map(|tensor| Residual::Tensor(tensor.data())), ..Epilogue::default() }
}

impl Conv {
    /// A convolution named `name` for inputs of `[height, width]`, with weights in HWIO order.
    ///
    /// # Errors
    /// When the input is too small for the geometry.
    pub fn new(
        level: Level,
        name: &str,
        geometry: ConvGeometry,
        input: [usize; 2],
        weight: Vec<f32>,
    ) -> Result<Self, GeometryError> {
        let kernel = conv::Conv::new(level, geometry, input)?;
        let shape = vec![geometry.out_channels, geometry.group_in(), geometry.kernel[0], geometry.kernel[1]];
        let weight = Parameter::weight(format!("{name}.weight"), shape, weight);
        let operands = operands_for_training(level, &geometry, Operands::F32);
        let fast = FastPasses::new(level, &kernel, operands)?;
        Ok(Conv { kernel, weight, operands, fast })
    }

    /// From now on, direct sums of training multiply such operands where that is faster. The passes are divided anew between
    /// them and fast algorithms, which always work in `f32`.
    pub fn set_operands(&mut self, level: Level, operands: Operands) {
        self.operands = operands_for_training(level, self.kernel.geometry(), operands);
        let fast = FastPasses::new(level, &self.kernel, self.operands);
        self.fast = fast.expect("a geometry that was valid before");
    }

    /// Output size `[height, width]`.
    pub fn output(&self) -> [usize; 2] {
        self.kernel.output()
    }

    /// Training: `[N, H, W, in]` → `[N, H/s, W/s, out]`, to which the residual is added, and whose rows `follow` works on.
    pub fn forward<'a>(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        x: impl Into<Activation<'a>>,
        residual: Option<&Tensor>,
        follow: Option<Follow>,
    ) -> Tensor {
        let epilogue = Epilogue { follow, ..adding(residual) };
        self.forward_by(cx, workspace, &self.weight.value, x.into(), epilogue)
    }

    /// The same, as if these were the weights, and with an epilogue.
    pub(super) fn forward_by(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        weight: &[f32],
        x: Activation,
        epilogue: Epilogue,
    ) -> Tensor {
        let mut y = workspace.tensor(self.output_shape(x.tensor.batch()));
        let out = y.data_mut();
        match &self.fast.forward {
            Some(conv) => conv.pack_and_forward(cx, x.source(), weight, epilogue, &mut workspace.fast, out),
            None => {
                let (weight, direct) = ((self.operands, weight), &mut workspace.direct);
                self.kernel.pack_and_forward(cx, x.source(), weight, epilogue, direct, out);
            }
        }
        y
    }

    /// Whether the passes of training take a batch norm and a ReLU that the input has not gone through yet.
    pub(super) fn takes_prologue(&self) -> bool {
        let takes = |fast: &Option<FastConv>| {
            fast.as_ref().map_or_else(|| self.kernel.takes_prologue(), FastConv::takes_prologue)
        };
        takes(&self.fast.forward) && takes(&self.fast.weights)
    }

    /// Whether it costs less to compute the output again than to keep it.
    pub fn is_cheap(&self) -> bool {
        let geometry = self.kernel.geometry();
        geometry.taps() * geometry.group_in() <= CHEAP
    }

    /// Operands of the direct sums of training.
    pub(super) fn operands(&self) -> Operands {
        self.operands
    }

    /// Shape of the output for so many images.
    pub fn output_shape(&self, images: usize) -> [usize; 4] {
        let [height, width] = self.kernel.output();
        [images, height, width, self.kernel.geometry().out_channels]
    }

    /// Inference: `[N, H, W, in]` → `[N, H/s, W/s, out]` by direct sums of `f32`, to which the residual is added.
    pub fn infer(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        x: &Tensor,
        residual: Option<&Tensor>,
    ) -> Tensor {
        let mut y = workspace.tensor(self.output_shape(x.batch()));
        let weight = (Operands::F32, &self.weight.value[..]);
        let (epilogue, direct) = (adding(residual), &mut workspace.direct);
        self.kernel.pack_and_forward(cx, x.data(), weight, epilogue, direct, y.data_mut());
        y
    }

    /// The weights' gradient, and the input's, whose rows `follow` works on; `also`, another gradient of the same input, becomes
    /// the sum of both.
    pub fn backward<'a>(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        x: impl Into<Activation<'a>>,
        dy: &Tensor,
        also: Option<Tensor>,
        follow: Option<Follow>,
    ) -> Tensor {
        let x = x.into();
        self.grad_weight(cx, workspace, x, dy);
        let residual = also.as_ref().map(|_| Residual::InPlace);
        let epilogue = Epilogue { residual, follow, ..Epilogue::default() };
        let mut dx = also.unwrap_or_else(|| workspace.tensor(x.tensor.shape()));
        self.grad_input(cx, workspace, &self.weight.value, dy, epilogue, &mut dx);
        dx
    }

    /// The input's gradient alone, as if these were the weights.
    pub(super) fn grad_input(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        weight: &[f32],
        dy: &Tensor,
        epilogue: Epilogue,
        dx: &mut Tensor,
    ) {
        let (dy, out) = (dy.data(), dx.data_mut());
        match &self.fast.backward {
            Some(conv) => conv.pack_and_forward(cx, dy, weight, epilogue, &mut workspace.fast, out),
            None => {
                let (weight, direct) = ((self.operands, weight), &mut workspace.direct);
                self.kernel.pack_and_grad_input(cx, dy, weight, epilogue, direct, out);
            }
        }
    }

    /// The weights' gradient alone, for the first convolution of a network.
    pub fn grad_weight<'a>(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        x: impl Into<Activation<'a>>,
        dy: &Tensor,
    ) {
        let (x, dy, dw) = (x.into().source(), dy.data(), self.weight.grad_mut());
        match &self.fast.weights {
            Some(conv) => conv.grad_weight(cx, x, dy, &mut workspace.fast, dw),
            None => self.kernel.grad_weight(cx, self.operands, x, dy, &mut workspace.direct, dw),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::bf16;
    use crate::kernels::conv::ConvScratch;

    #[test]
    fn passes_follow_the_weights() {
        let (cx, mut workspace) = (Context::new(Level::detect(), 2), Workspace::default());
        let geometry = ConvGeometry::square(3, 5, 3, 2);
        let weight = (0..geometry.weight_len()).map(|value| (value % 7) as f32 - 3.0).collect();
        let mut conv = Conv::new(cx.level(), "conv", geometry, [6, 6], weight).unwrap();
        assert!(conv.weight.grad.is_empty());
        let x = Tensor::new([1, 6, 6, 3], (0..108).map(|value| (value % 5) as f32 - 2.0).collect()).unwrap();
        let y = conv.forward(&cx, &mut workspace, &x, None, None);
        assert!(y.data().iter().any(|&value| value != 0.0));
        let dx = conv.backward(&cx, &mut workspace, &x, &y, None, None);
        conv.weight.value.iter_mut().for_each(|value| *value *= 2.0);
        let doubled = |tensor: &Tensor| tensor.data().iter().map(|value| 2.0 * value).collect::<Vec<_>>();
        assert_eq!(conv.forward(&cx, &mut workspace, &x, None, None).data(), doubled(&y));
        assert_eq!(conv.backward(&cx, &mut workspace, &x, &y, None, None).data(), doubled(&dx));
    }

    /// Largest distance of two tensors, relative to the second one's largest value.
    fn distance(found: &Tensor, expected: &Tensor) -> f32 {
        let largest = expected.data().iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let differences = found.data().iter().zip(expected.data()).map(|(a, b)| (a - b).abs());
        differences.fold(0.0, f32::max) / largest
    }

    #[test]
    fn fast_passes_of_training_agree_with_direct_sums_and_follow_the_weights() {
        let (cx, mut workspace) = (Context::new(Level::detect(), 2), Workspace::default());
        let geometry = ConvGeometry::square(32, 48, 3, 1);
        let value = |at: usize| (at * 37 % 101) as f32 / 50.0 - 1.0;
        let weight = (0..geometry.weight_len()).map(value).collect();
        let mut conv = Conv::new(cx.level(), "conv", geometry, [12, 9], weight).unwrap();
        assert!(conv.fast.forward.is_some() && conv.fast.backward.is_some());
        let images = |channels: usize| {
            Tensor::new([2, 12, 9, channels], (0..216 * channels).map(value).collect()).unwrap()
        };
        let (x, dy, also) = (images(32), images(48), images(32));
        for _ in 0..2 {
            let y = conv.forward(&cx, &mut workspace, &x, None, None);
            assert!(distance(&y, &conv.infer(&cx, &mut workspace, &x, None)) < 1e-5);
            let dx = conv.backward(&cx, &mut workspace, &x, &dy, Some(also.clone()), None);
            let packed = conv.kernel.pack_backward(&cx, Operands::F32, &conv.weight.value);
            let mut expected = Tensor::zeros(x.shape());
            let residual = Some(Residual::Tensor(also.data()));
            let epilogue = Epilogue { residual, ..Epilogue::default() };
            let mut scratch = ConvScratch::default();
            conv.kernel.grad_input(&cx, dy.data(), &packed, epilogue, &mut scratch, expected.data_mut());
            assert!(distance(&dx, &expected) < 1e-5);
            conv.weight.value.iter_mut().for_each(|value| *value = 1.0 - 3.0 * *value);
        }
    }
    #[test]
    fn direct_passes_of_training_see_operands_of_bf16_and_others_do_not() {
        let value = |at: usize| (at * 37 % 101) as f32 / 50.0 - 1.0;
        let rounded = |values: &[f32]| -> Vec<f32> {
            values.iter().map(|&value| bf16::to_f32(bf16::from_f32(value))).collect()
        };
        // Pairs that end in the middle of a tap, a 1×1, and groups, which stay f32.
        let cases = [
            (ConvGeometry::square(33, 40, 3, 2), true),
            (ConvGeometry::square(48, 40, 1, 1), true),
            (ConvGeometry { groups: 2, ..ConvGeometry::square(32, 32, 3, 2) }, false),
        ];
        for level in Level::available() {
            let (cx, mut workspace) = (Context::new(level, 2), Workspace::default());
            for (geometry, rounds) in cases {
                let weight: Vec<f32> = (0..geometry.weight_len()).map(value).collect();
                let make = |weight| Conv::new(level, "conv", geometry, [9, 10], weight).unwrap();
                let (mut halves, mut exact) = (make(weight.clone()), make(rounded(&weight)));
                halves.set_operands(level, Operands::Bf16);
                exact.fast = FastPasses { forward: None, backward: None, weights: None };
                let [height, width] = halves.output();
                let tensor = |shape: [usize; 4], turn: usize| {
                    let values: Vec<f32> = (0..shape.iter().product()).map(|at| value(turn * at)).collect();
                    [Tensor::new(shape, values.clone()), Tensor::new(shape, rounded(&values))]
                        .map(Result::unwrap)
                };
                let x = tensor([2, 9, 10, geometry.in_channels], 3);
                let dy = tensor([2, height, width, geometry.out_channels], 5);
                let mut passes = |conv: &mut Conv, x: &Tensor, dy: &Tensor| {
                    let y = conv.forward(&cx, &mut workspace, x, None, None);
                    let dx = conv.backward(&cx, &mut workspace, x, dy, None, None);
                    let dw =
                        Tensor::new([1, 1, 1, conv.weight.grad.len()], conv.weight.grad.clone()).unwrap();
                    [y, dx, dw]
                };
                let found = passes(&mut halves, &x[0], &dy[0]);
                let expected = passes(&mut exact, &x[1], &dy[1]);
                for (found, expected) in found.iter().zip(&expected) {
                    // Products of bf16 are exact, so that only the order of sums differs; rounding would be 1e-3.
                    assert_eq!(distance(found, expected) < 1e-5, rounds, "{} {geometry:?}", level.name());
                }
                let inferred = halves.infer(&cx, &mut workspace, &x[0], None);
                assert!(distance(&inferred, &expected[0]) > 1e-4, "inference rounds");
            }
        }
    }
}
