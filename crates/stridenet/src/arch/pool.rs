//! Pools that shrink a feature map, without weights.

use stridenet_kernels::conv::{AverageWindow, GeometryError, Window};

/// A pool over `[H, W]`, each channel by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PoolKind {
    /// The maximum over a square window; padding never wins.
    Max(Window),
    /// The mean over square windows without padding before the first pixel.
    Avg(AverageWindow),
    /// The binomial filter `[1, 2, 1] ⊗ [1, 2, 1] / 16` at every stride-th pixel (Zhang 2019). The input is
    /// reflected by one pixel at each edge, without repeating the edge; along an axis of one pixel that pixel
    /// is its own mirror.
    Blur {
        /// Step between outputs.
        stride: usize,
    },
}

impl PoolKind {
    /// The window along either axis. That of an average may reach beyond the edge, which only
    /// [`output`](Self::output) accounts for.
    pub const fn window(&self) -> Window {
        match *self {
            PoolKind::Max(window) => window,
            PoolKind::Avg(AverageWindow { kernel, stride, .. }) => {
                Window { kernel, stride, padding: 0, dilation: 1 }
            }
            PoolKind::Blur { stride } => Window { kernel: 3, stride, padding: 1, dilation: 1 },
        }
    }

    /// Output size `[height, width]` for an input of `[height, width]`.
    ///
    /// # Errors
    /// When the stride or an input size is zero, or the input is smaller than a window that has to be filled.
    pub fn output(&self, [height, width]: [usize; 2]) -> Result<[usize; 2], GeometryError> {
        Ok([self.output_along(height)?, self.output_along(width)?])
    }

    fn output_along(&self, input: usize) -> Result<usize, GeometryError> {
        match *self {
            PoolKind::Avg(window) => window.output(input),
            PoolKind::Max(_) | PoolKind::Blur { .. } => self.window().output(input),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Downsample;
    use super::*;
    use stridenet_kernels::conv::ConvGeometry;

    #[test]
    fn every_downsampling_gives_the_strided_convolutions_size() {
        for stride in [2, 3] {
            let strided = ConvGeometry::square(8, 8, 3, stride);
            let projection = ConvGeometry::square(8, 8, 1, stride);
            for size in 1..=40usize {
                let expected = [size.div_ceil(stride), 40usize.div_ceil(stride)];
                assert_eq!(strided.output_size([size, 40]), Ok(expected));
                assert_eq!(projection.output_size([size, 40]), Ok(expected));
                for downsample in [Downsample::MaxPool, Downsample::AvgPool, Downsample::BlurPool] {
                    let pool = downsample.pool(stride).unwrap();
                    assert_eq!(
                        pool.output([size, 40]),
                        Ok(expected),
                        "{downsample} stride {stride} size {size}"
                    );
                }
            }
        }
    }

    #[test]
    fn max_pool_kernels_are_odd_and_cover_the_stride() {
        for (stride, kernel) in [(2, 3), (3, 3), (4, 5), (5, 5)] {
            let window = Window { kernel, stride, padding: kernel / 2, dilation: 1 };
            assert_eq!(Downsample::MaxPool.pool(stride), Some(PoolKind::Max(window)));
        }
        assert_eq!((Downsample::MaxPool.pool(1), Downsample::AvgPool.pool(1)), (None, None));
        assert_eq!(Downsample::Strided.pool(2), None);
    }

    #[test]
    fn empty_inputs_and_zero_strides_are_refused() {
        let average = |stride| PoolKind::Avg(AverageWindow::partial(stride));
        for pool in [PoolKind::Max(Window::same(3, 2)), average(2), PoolKind::Blur { stride: 2 }] {
            assert!(matches!(pool.output([0, 4]), Err(GeometryError::TooSmall { input: 0, .. })));
        }
        assert_eq!(average(0).output([4, 4]), Err(GeometryError::Zero { what: "kernel" }));
        assert_eq!(PoolKind::Blur { stride: 0 }.output([4, 4]), Err(GeometryError::Zero { what: "stride" }));
    }
}
