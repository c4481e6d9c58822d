//! Three products by two multiplications (S. Winograd, "A New Algorithm for Inner Product", IEEE Transactions on Computers C-17,
//! 1968).
//!
//! `(a₀ + b₁)·(b₀ + a₁) = a₀b₀ + a₁b₁ + a₀a₁ + b₀b₁`, where the last two terms belong to a row of A and to a column of B alone: sums
//! of them over all pairs are taken off at the end. That trades a multiplication for two additions, which are made beside the
//! multiplications on cores that have adders of their own: with a third product that is multiplied as usual, two of each in the
//! time of three multiplications.
//!
//! With `(a₀ − b₁)·(b₀ − a₁)` the sign of both terms turns, so that every second pair takes back what the last one has brought: what
//! is taken off in the end stays as small as a sum of random signs. Where A's values are about as large as B's, no term is much
//! larger than the products: errors were 1.1 to 1.6 times those of products one by one, for layers of a ResNet-50 with random weights.
//! [`balance`](crate::balance) sees to that.

/// Products of two threes, of which the second has minus signs. What such steps leave is multiplied as usual.
pub(crate) const STEP: usize = 6;
