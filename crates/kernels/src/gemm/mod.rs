//! Matrix products: packing, blocking, threads, epilogue.
//!
//! A product's left side is gathered through pointers (`gather`), so that a plain matrix, a strided 1×1 convolution
//! and a padded 3×3 convolution are the same loop. The right side is packed into panels (`pack`). Operands may be rounded to
//! bf16 on their way, in pairs that are multiplied at once, or be multiplied three by two multiplications (`threes`), and A's may go
//! through a batch norm and a ReLU (`prepared`); sums are always `f32`. Work is cut into tasks by the shape alone, and each result is
//! one sum in one order, whatever the number of threads.

mod driver;
pub(crate) mod gather;
pub(crate) mod heights;
pub(crate) mod micro;
pub(crate) mod pack;
mod pack_halves;
mod prepared;
#[cfg(test)]
mod tests;
mod threes;
mod transposed;

pub(crate) use driver::Product;
pub use driver::{Epilogue, Residual};
pub use pack::PackedMatrix;
pub(crate) use prepared::PreparedScratch;
pub(crate) use transposed::{TransposedProduct, TransposedScratch, add_parts, row_step};

use crate::Context;
use gather::{Gather, Scatter};

/// `C = A·B` with an epilogue: A is `rows × B.depth()`, C is `rows × B.columns()`, both row-major.
///
/// # Panics
/// When a slice's length does not fit, or `b` was packed for another level than the context's.
pub fn multiply(cx: &Context, rows: usize, a: &[f32], b: &PackedMatrix, epilogue: Epilogue, c: &mut [f32]) {
    let gather = Gather::matrix(rows, b.depth());
    let scatter = Scatter::dense(rows, 1, b.columns());
    epilogue.follow.inspect(|follow| follow.begin(c.len(), 1));
    let (input, gather, scatter) = (a.into(), &gather, &scatter);
    Product { images: 1, input, offset: 0, gather, b, scatter, column: 0, epilogue }.run(
        cx,
        &mut PreparedScratch::default(),
        c,
    );
}
