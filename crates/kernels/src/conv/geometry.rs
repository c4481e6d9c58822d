//! Shapes of convolutions and pooling windows. Output sizes and padding are computed here and nowhere else.

use thiserror::Error;

/// Why a convolution or pooling window cannot be built or applied.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GeometryError {
    /// A size that must be positive is zero.
    #[error("{what} is 0, expected at least 1")]
    Zero {
        /// The size's name.
        what: &'static str,
    },
    /// Channels do not divide into groups.
    #[error("{channels} {what} do not divide into {groups} groups")]
    Groups {
        /// Which channels: input or output.
        what: &'static str,
        /// How many there are.
        channels: usize,
        /// Number of groups.
        groups: usize,
    },
    /// The padded input is smaller than the (dilated) kernel.
    #[error(
        "an input of {input} pixels with padding {padding} is smaller than the kernel's reach of {reach}"
    )]
    TooSmall {
        /// Input size along the axis.
        input: usize,
        /// Padding on each side.
        padding: usize,
        /// Size of the dilated kernel.
        reach: usize,
    },
    /// A size or product of sizes does not fit the address space.
    #[error("the sizes of a layer overflow: {what}")]
    Overflow {
        /// What was being computed.
        what: &'static str,
    },
}

/// A sliding window along one axis: kernel, stride, zero padding on each side, dilation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    /// Taps along the axis.
    pub kernel: usize,
    /// Step between neighbouring outputs.
    pub stride: usize,
    /// Positions added on each side of the input.
    pub padding: usize,
    /// Step between neighbouring taps.
    pub dilation: usize,
}

impl Window {
    /// A window of `kernel` taps moved by `stride`, with the padding that keeps the size at stride 1 for odd kernels.
    pub const fn same(kernel: usize, stride: usize) -> Self {
        Window { kernel, stride, padding: kernel / 2, dilation: 1 }
    }

    /// Distance between the first and the last tap, plus one.
    pub const fn reach(&self) -> usize {
        self.dilation * (self.kernel - 1) + 1
    }

    /// Number of outputs for `input` positions: `⌊(input + 2·padding − reach) / stride⌋ + 1`.
    ///
    /// # Errors
    /// When a parameter is zero, or the padded input is smaller than the window.
    pub fn output(&self, input: usize) -> Result<usize, GeometryError> {
        for (what, value) in [("kernel", self.kernel), ("stride", self.stride), ("dilation", self.dilation)] {
            if value == 0 {
                return Err(GeometryError::Zero { what });
            }
        }
        let overflow = GeometryError::Overflow { what: "window" };
        let reach = (self.kernel - 1)
            .checked_mul(self.dilation)
            .and_then(|r| r.checked_add(1))
            .ok_or(overflow.clone())?;
        let padded = self.padding.checked_mul(2).and_then(|p| p.checked_add(input)).ok_or(overflow)?;
        if input == 0 || padded < reach {
            return Err(GeometryError::TooSmall { input, padding: self.padding, reach });
        }
        Ok((padded - reach) / self.stride + 1)
    }

    /// The input position that tap `tap` of output `output` reads, or `None` where it falls into the padding.
    pub fn source(&self, output: usize, tap: usize, input: usize) -> Option<usize> {
        (output * self.stride + tap * self.dilation)
            .checked_sub(self.padding)
            .filter(|&position| position < input)
    }
}

/// What an average pool makes of a window that reaches beyond the end of its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Edge {
    /// It averages the positions that are there (PyTorch's `ceil_mode=True, count_include_pad=False`).
    Partial,
    /// There is no such window (PyTorch's default).
    Drop,
    /// What is missing counts as zeros (TensorFlow's `SAME`).
    Zeros,
}

/// The window of an average pool along one axis, which begins at every `stride`-th position, without padding before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AverageWindow {
    /// Positions averaged.
    pub kernel: usize,
    /// Step between windows.
    pub stride: usize,
    /// What happens at the end.
    pub edge: Edge,
}

impl AverageWindow {
    /// Windows of `stride` positions side by side, the last one possibly shorter.
    pub const fn partial(stride: usize) -> Self {
        AverageWindow { kernel: stride, stride, edge: Edge::Partial }
    }

    /// Number of windows for `input` positions.
    ///
    /// # Errors
    /// When a parameter is zero, or the input has no window.
    pub fn output(&self, input: usize) -> Result<usize, GeometryError> {
        let AverageWindow { kernel, stride, edge } = *self;
        for (what, value) in [("kernel", kernel), ("stride", stride)] {
            if value == 0 {
                return Err(GeometryError::Zero { what });
            }
        }
        match edge {
            _ if input == 0 => Err(GeometryError::TooSmall { input, padding: 0, reach: kernel }),
            Edge::Drop => Window { kernel, stride, padding: 0, dilation: 1 }.output(input),
            Edge::Zeros => Ok(input.div_ceil(stride)),
            // A window begins inside the input, and the first one always exists.
            Edge::Partial => Ok(input.saturating_sub(kernel).div_ceil(stride).min((input - 1) / stride) + 1),
        }
    }
}

/// A two-dimensional convolution's parameters, as in PyTorch's `Conv2d`. Pairs are `[height, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConvGeometry {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Kernel size.
    pub kernel: [usize; 2],
    /// Step between neighbouring outputs.
    pub stride: [usize; 2],
    /// Zero padding on each side.
    pub padding: [usize; 2],
    /// Step between neighbouring taps.
    pub dilation: [usize; 2],
    /// Number of channel groups that do not see each other.
    pub groups: usize,
}

impl ConvGeometry {
    /// A square convolution that keeps the size at stride 1 (padding `kernel / 2`), one group, no dilation.
    pub const fn square(in_channels: usize, out_channels: usize, kernel: usize, stride: usize) -> Self {
        ConvGeometry {
            in_channels,
            out_channels,
            kernel: [kernel; 2],
            stride: [stride; 2],
            padding: [kernel / 2; 2],
            dilation: [1; 2],
            groups: 1,
        }
    }

    /// The window along axis `axis` (0 height, 1 width).
    pub const fn window(&self, axis: usize) -> Window {
        Window {
            kernel: self.kernel[axis],
            stride: self.stride[axis],
            padding: self.padding[axis],
            dilation: self.dilation[axis],
        }
    }

    /// Taps of the kernel, `kernel_h · kernel_w`.
    pub const fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Input channels that one output channel sees.
    pub const fn group_in(&self) -> usize {
        self.in_channels / self.groups
    }

    /// Output channels of one group.
    pub const fn group_out(&self) -> usize {
        self.out_channels / self.groups
    }

    /// Whether groups of as many input as output channels fill vectors of `lanes` channels, alone or together.
    pub(crate) fn groups_fill(&self, lanes: usize) -> bool {
        let depth = self.group_in().max(lanes);
        self.group_in() == self.group_out()
            && depth.is_multiple_of(lanes)
            && depth.is_multiple_of(self.group_in())
            && self.in_channels.is_multiple_of(depth)
    }

    /// Number of weights, `kernel_h · kernel_w · in_channels / groups · out_channels`.
    pub const fn weight_len(&self) -> usize {
        self.taps() * self.group_in() * self.out_channels
    }

    /// Output size `[height, width]` for an input of `[height, width]`.
    ///
    /// # Errors
    /// When a parameter is zero, channels do not divide into groups, sizes overflow, or the input is too small.
    pub fn output_size(&self, input: [usize; 2]) -> Result<[usize; 2], GeometryError> {
        self.validate()?;
        Ok([self.window(0).output(input[0])?, self.window(1).output(input[1])?])
    }

    /// Multiply-accumulates for one image of `[height, width]` pixels.
    ///
    /// # Errors
    /// As [`output_size`](Self::output_size).
    pub fn macs(&self, input: [usize; 2]) -> Result<u64, GeometryError> {
        let [height, width] = self.output_size(input)?;
        Ok(height as u64 * width as u64 * self.weight_len() as u64)
    }

    /// Checks what does not depend on the input's size.
    ///
    /// # Errors
    /// When a parameter is zero, channels do not divide into groups, or the weights' count overflows.
    pub fn validate(&self) -> Result<(), GeometryError> {
        let positive = [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("groups", self.groups),
            ("kernel", self.kernel[0].min(self.kernel[1])),
            ("stride", self.stride[0].min(self.stride[1])),
            ("dilation", self.dilation[0].min(self.dilation[1])),
        ];
        if let Some((what, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(GeometryError::Zero { what });
        }
        for (what, channels) in [("input channels", self.in_channels), ("output channels", self.out_channels)]
        {
            if !channels.is_multiple_of(self.groups) {
                return Err(GeometryError::Groups { what, channels, groups: self.groups });
            }
        }
        [self.kernel[0], self.kernel[1], self.group_in(), self.out_channels]
            .iter()
            .try_fold(size_of::<f32>(), |product, &n| product.checked_mul(n))
            .filter(|&bytes| bytes <= isize::MAX as usize)
            .map(|_| ())
            .ok_or(GeometryError::Overflow { what: "number of weights" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_sizes_are_those_of_the_formula() {
        let stem = ConvGeometry { padding: [3; 2], ..ConvGeometry::square(3, 64, 7, 2) };
        assert_eq!(stem.output_size([224, 223]), Ok([112, 112]));
        assert_eq!(Window::same(3, 2).output(7), Ok(4));
        assert_eq!(Window { kernel: 3, stride: 3, padding: 0, dilation: 2 }.output(11), Ok(3));
        assert_eq!(stem.macs([224, 224]), Ok(118_013_952));
    }

    #[test]
    fn impossible_windows_are_refused() {
        let window = Window { kernel: 5, stride: 1, padding: 1, dilation: 1 };
        assert_eq!(window.output(2), Err(GeometryError::TooSmall { input: 2, padding: 1, reach: 5 }));
        assert_eq!(Window { stride: 0, ..window }.output(9), Err(GeometryError::Zero { what: "stride" }));
        let huge = ConvGeometry { kernel: [usize::MAX / 2, 3], ..ConvGeometry::square(64, 64, 3, 1) };
        assert_eq!(huge.validate(), Err(GeometryError::Overflow { what: "number of weights" }));
        let groups = ConvGeometry { groups: 3, ..ConvGeometry::square(6, 64, 3, 1) };
        assert!(
            groups
                .validate()
                .is_err_and(|e| e.to_string() == "64 output channels do not divide into 3 groups")
        );
    }

    #[test]
    fn average_windows_end_as_pytorchs_do() {
        // PyTorch 2: avg_pool1d with ceil_mode=True, with ceil_mode=False, and timm's AvgPool2dSame along an axis.
        for (kernel, stride, input, [partial, drop, zeros]) in [
            (2, 2, 7, [4, 3, 4]),
            (2, 2, 8, [4, 4, 4]),
            (2, 2, 1, [1, 0, 1]),
            (2, 1, 7, [6, 6, 7]),
            (3, 2, 8, [4, 3, 4]),
            (2, 3, 9, [3, 3, 3]),
            (2, 3, 10, [4, 3, 4]),
            (2, 4, 9, [3, 2, 3]),
            (1, 4, 8, [2, 2, 2]),
        ] {
            let output = |edge| AverageWindow { kernel, stride, edge }.output(input).unwrap_or(0);
            assert_eq!(
                [Edge::Partial, Edge::Drop, Edge::Zeros].map(output),
                [partial, drop, zeros],
                "{kernel} {stride} {input}"
            );
        }
        assert!(AverageWindow { kernel: 0, stride: 1, edge: Edge::Zeros }.output(4).is_err());
        assert!(AverageWindow { kernel: 1, stride: 0, edge: Edge::Drop }.output(4).is_err());
        assert!(AverageWindow::partial(2).output(0).is_err());
    }

    #[test]
    fn sources_skip_the_padding() {
        let window = Window::same(3, 2);
        assert_eq!((0..3).map(|tap| window.source(0, tap, 5)).collect::<Vec<_>>(), [None, Some(0), Some(1)]);
        assert_eq!((0..3).map(|tap| window.source(2, tap, 5)).collect::<Vec<_>>(), [Some(3), Some(4), None]);
    }
}
