//! Lays a network's steps over a file's, from the logits back to the images.

use super::dag::{Dag, NormParts, Op};
use std::collections::HashMap;

/// Where the tensors of a batch norm come from.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum NormSource<'f, T> {
    /// From the file's own batch norm; `shift` is a bias before it that it takes in.
    Parts { norm: &'f NormParts<T>, shift: Option<&'f T> },
    /// The file has it inside the convolution, and what is left of it is this bias, if any.
    Folded(Option<&'f T>),
}

/// A part of the network with its place in the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Binding<'p, 'f, T> {
    /// A weight.
    Weight { name: &'p str, from: &'f T },
    /// A bias, which the file may leave out where it is zero.
    Bias { name: &'p str, from: Option<&'f T> },
    /// A batch norm.
    Norm { names: &'p NormParts<String>, channels: usize, from: NormSource<'f, T> },
}

/// A step of the file that is not the network's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Difference {
    /// The network's step and what it is.
    pub(super) expected: [String; 2],
    /// The file's step and what it is.
    pub(super) found: [String; 2],
}

/// The places of the network's tensors in the file.
pub(super) fn unify<'p, 'f, T: PartialEq>(
    pattern: &'p Dag<String>,
    file: &'f Dag<T>,
) -> Result<Vec<Binding<'p, 'f, T>>, Difference> {
    let signatures = (pattern.signatures(), file.signatures());
    let (mut places, mut bindings) = (HashMap::new(), Vec::new());
    let mut open = vec![(pattern.steps.len() - 1, file.steps.len() - 1)];
    while let Some((ours, theirs)) = open.pop() {
        let (expected, found) = (&pattern.steps[ours], &file.steps[theirs]);
        let known = places.insert(ours, theirs);
        if known == Some(theirs) {
            continue;
        }
        let pieces = bind(&expected.op, &found.op);
        // The same step of the network cannot be two of the file's.
        let Some(pieces) = pieces.filter(|_| known.is_none() && expected.inputs.len() == found.inputs.len())
        else {
            return Err(Difference {
                expected: [expected.name.clone(), expected.op.describe()],
                found: [found.name.clone(), found.op.describe()],
            });
        };
        bindings.extend(pieces);
        let mut inputs = found.inputs.clone();
        // A sum's terms are in any order.
        if let (Op::Add, &[first, _], &[a, b]) = (&expected.op, &expected.inputs[..], &found.inputs[..]) {
            let same = |file_step: usize| signatures.0[first] == signatures.1[file_step];
            let alike =
                |file_step: usize| pattern.steps[first].op.shape() == file.steps[file_step].op.shape();
            if !same(a) && (same(b) || !alike(a) && alike(b)) {
                inputs.reverse();
            }
        }
        open.extend(expected.inputs.iter().copied().zip(inputs));
    }
    Ok(bindings)
}

/// The tensors of a step, if both are the same operation.
fn bind<'p, 'f, T>(expected: &'p Op<String>, found: &'f Op<T>) -> Option<Vec<Binding<'p, 'f, T>>> {
    if expected.shape() != found.shape() {
        return None;
    }
    Some(match (expected, found) {
        (Op::Conv { geometry, weight: name, norm: names, .. }, Op::Conv { weight: from, bias, norm, .. }) => {
            let weight = Binding::Weight { name, from };
            let source = match (norm, bias) {
                (Some(norm), shift) => NormSource::Parts { norm, shift: shift.as_ref() },
                (None, bias) => NormSource::Folded(bias.as_ref()),
            };
            match names {
                Some(names) => {
                    vec![weight, Binding::Norm { names, channels: geometry.out_channels, from: source }]
                }
                // Nowhere to put either.
                None if norm.is_some() || bias.is_some() => return None,
                None => vec![weight],
            }
        }
        (Op::Norm { channels, norm: names }, Op::Norm { norm, .. }) => {
            vec![Binding::Norm { names, channels: *channels, from: NormSource::Parts { norm, shift: None } }]
        }
        (Op::AvgPool { window: ours, .. }, Op::AvgPool { window: theirs, exact }) => {
            if ours.edge != theirs.edge && !exact {
                return None;
            }
            Vec::new()
        }
        (Op::ChannelConv { weight: name, .. }, Op::ChannelConv { weight: from, .. }) => {
            vec![Binding::Weight { name, from }]
        }
        (Op::Linear { weight: name, bias: names, .. }, Op::Linear { weight: from, bias, .. }) => {
            let weight = Binding::Weight { name, from };
            match (names, bias) {
                (Some(name), bias) => vec![weight, Binding::Bias { name, from: bias.as_ref() }],
                (None, Some(_)) => return None,
                (None, None) => vec![weight],
            }
        }
        _ => Vec::new(),
    })
}
