//! All parameters of a network, cut into pieces that tasks of about one size take.

use crate::layer::Decay;
use crate::network::Network;

/// Values of a piece.
const PIECE: usize = 1 << 14;

/// A part of a parameter and of what an optimizer remembers of it.
#[derive(Debug)]
pub(in crate::train) struct Piece<'a> {
    /// Number of the parameter.
    pub(super) parameter: usize,
    /// Whether weight decay applies to it by default.
    pub(super) decay: Decay,
    /// Its values.
    pub(super) value: &'a mut [f32],
    /// Their gradient.
    pub(in crate::train) grad: &'a mut [f32],
    /// As long as the value, or empty where the optimizer has fewer states.
    pub(in crate::train) states: [&'a mut [f32]; 2],
    /// What a task found out about the piece.
    pub(super) sums: [f64; 2],
}

/// The memory of a list of pieces, which is used again for each step.
#[derive(Debug, Default)]
pub(in crate::train) struct Spread(Vec<Piece<'static>>);

/// The first `length` values, which are taken off.
fn take<'a>(from: &mut &'a mut [f32], length: usize) -> &'a mut [f32] {
    let (first, rest) = std::mem::take(from).split_at_mut(length);
    *from = rest;
    first
}

/// The memory of a vector for values of another kind. Collecting reuses it where the two have one layout, as a type has with
/// other lifetimes; else it takes new memory.
fn recycled<T, U>(mut kept: Vec<T>) -> Vec<U> {
    kept.clear();
    kept.into_iter().map(|_| unreachable!("the vector is empty")).collect()
}

impl Spread {
    /// The pieces of all parameters, in their order; `states` have a vector for each parameter, or none at all. They go back to
    /// [`keep`](Self::keep).
    pub(in crate::train) fn over<'a>(
        &mut self,
        network: &'a mut Network,
        states: &'a mut [Vec<Vec<f32>>; 2],
    ) -> Vec<Piece<'a>> {
        let mut pieces: Vec<Piece> = recycled(std::mem::take(&mut self.0));
        let mut states = states.each_mut().map(|states| states.iter_mut());
        for (number, parameter) in network.parameters_mut().enumerate() {
            let decay = parameter.decay;
            let (mut value, mut grad) = parameter.value_and_grad();
            let mut states =
                states.each_mut().map(|states| states.next().map_or(&mut [][..], Vec::as_mut_slice));
            while !value.is_empty() {
                let length = value.len().min(PIECE);
                pieces.push(Piece {
                    parameter: number,
                    decay,
                    value: take(&mut value, length),
                    grad: take(&mut grad, length),
                    states: states.each_mut().map(|state| {
                        let length = state.len().min(length);
                        take(state, length)
                    }),
                    sums: [0.0; 2],
                });
            }
        }
        pieces
    }

    /// Takes the list back.
    pub(in crate::train) fn keep(&mut self, pieces: Vec<Piece>) {
        self.0 = recycled(pieces);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vectors_memory_is_used_again() {
        let values: Vec<&str> = Vec::with_capacity(100);
        let place = values.as_ptr();
        let again: Vec<&str> = recycled(values);
        assert!(again.as_ptr() == place && again.capacity() == 100);
    }
}
