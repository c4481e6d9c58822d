//! Constants of a graph, and what follows from constants alone: mostly arithmetic on sizes.

use super::{Decoder, LARGEST, Value, int, ints};
use crate::weights::onnx::{Attribute, Node, OnnxTensor};
use std::path::Path;

/// The most numbers of an array that is computed with.
const MOST_NUMBERS: usize = 64;

/// A constant. Weights stay where they are in the file.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::exchange) struct Constant<'a> {
    /// The sizes.
    pub(in crate::exchange) shape: Vec<usize>,
    /// What it is called in messages.
    pub(in crate::exchange) name: String,
    source: Source<'a>,
}

#[derive(Debug, Clone, PartialEq)]
enum Source<'a> {
    /// Floats of the file; a matrix may be transposed.
    Tensor { tensor: &'a OnnxTensor<'a>, transposed: bool },
    /// The same float everywhere.
    Same(f32),
    /// A few numbers, mostly sizes; `None` where one depends on the images. f64 holds every size exactly.
    Numbers { values: Numbers, whole: bool },
}

/// Numbers that are computed with, `None` where they depend on the images.
type Numbers = Vec<Option<f64>>;

/// The product of sizes, if it is one.
fn product(sizes: &[usize]) -> Option<usize> {
    sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size))
}

impl<'a> Constant<'a> {
    pub(super) fn new(name: &str, tensor: &'a OnnxTensor<'a>, path: &Path) -> Result<Self, String> {
        let (shape, name) = (tensor.shape.clone(), name.to_owned());
        if tensor.is_float() {
            // A scalar, such as an exporter's zero.
            let source = match shape.is_empty() {
                true => Source::Same(tensor.f32_values(path)?[0]),
                false => Source::Tensor { tensor, transposed: false },
            };
            return Ok(Constant { shape, name, source });
        }
        if tensor.len() > MOST_NUMBERS {
            return Err(format!("reads {} whole numbers where weights or sizes are expected", tensor.len()));
        }
        let values = tensor.i64_values(path)?.into_iter().map(|value| Some(value as f64)).collect();
        Ok(Constant { shape, name, source: Source::Numbers { values, whole: true } })
    }

    fn numbers(shape: Vec<usize>, values: Numbers, whole: bool) -> Self {
        Constant { shape, name: "sizes".to_owned(), source: Source::Numbers { values, whole } }
    }

    fn list(values: Numbers) -> Self {
        Constant::numbers(vec![values.len()], values, true)
    }

    /// A number repeated to a shape; whole ones are for computing with.
    fn same(value: f64, shape: Vec<usize>, whole: bool) -> Result<Self, String> {
        match product(&shape) {
            Some(length) if whole && length <= MOST_NUMBERS => {
                Ok(Constant::numbers(shape, vec![Some(value); length], true))
            }
            // More of one float is no bias.
            Some(length) if !whole && length <= LARGEST as usize => Ok(Constant {
                shape,
                name: format!("{value} everywhere"),
                source: Source::Same(value as f32),
            }),
            _ => Err(format!("repeats a number to the shape {shape:?}")),
        }
    }

    /// Whether it is zero everywhere without looking at weights.
    pub(super) fn is_zero(&self) -> bool {
        self.source == Source::Same(0.0)
    }

    /// Whether it has floats.
    pub(super) fn is_float(&self) -> bool {
        !matches!(self.source, Source::Numbers { .. })
    }

    /// The few numbers that it is, and whether they are whole ones.
    fn few(&self) -> Result<(&[usize], Numbers, bool), String> {
        match &self.source {
            Source::Numbers { values, whole } => Ok((&self.shape, values.clone(), *whole)),
            Source::Same(value) if self.shape.is_empty() => Ok((&[], vec![Some(f64::from(*value))], false)),
            _ => Err("computes with weights, expected them as they are".to_owned()),
        }
    }

    /// A list of sizes, `None` where they are not known.
    pub(super) fn sizes(&self) -> Result<Vec<Option<i64>>, String> {
        match &self.source {
            Source::Numbers { values, .. } => {
                Ok(values.iter().map(|value| value.map(|value| value as i64)).collect())
            }
            _ => Err("reads weights where sizes are expected".to_owned()),
        }
    }

    /// A list of known whole numbers.
    pub(super) fn ints(&self) -> Result<Vec<i64>, String> {
        let known = self.sizes()?.into_iter().map(|size| size.ok_or("depends on the size of the images"));
        Ok(known.collect::<Result<_, _>>()?)
    }

    /// The one number of a scalar.
    pub(super) fn scalar(&self) -> Option<f64> {
        match self.few().ok()?.1[..] {
            [value] => value,
            _ => None,
        }
    }

    /// A matrix with rows and columns exchanged.
    pub(super) fn transposed(&self) -> Option<Self> {
        let &[rows, columns] = &self.shape[..] else { return None };
        let source = match &self.source {
            Source::Tensor { tensor, transposed } => Source::Tensor { tensor, transposed: !transposed },
            Source::Same(value) => Source::Same(*value),
            Source::Numbers { values, whole } => {
                let turned = (0..values.len()).map(|at| values[at % rows * columns + at / rows]).collect();
                Source::Numbers { values: turned, whole: *whole }
            }
        };
        Some(Constant { shape: vec![columns, rows], name: self.name.clone(), source })
    }

    /// The same values in another shape; nothing where that is not possible.
    pub(super) fn reshaped(&self, shape: Vec<usize>) -> Option<Self> {
        let moved = matches!(self.source, Source::Tensor { transposed: true, .. });
        (product(&shape) == product(&self.shape) && !moved).then(|| Constant { shape, ..self.clone() })
    }

    /// The values in row-major order; `path` is the file.
    ///
    /// # Errors
    /// When there are no floats, or they cannot be read.
    pub(in crate::exchange) fn values(&self, path: &Path) -> Result<Vec<f32>, String> {
        match &self.source {
            Source::Same(value) => Ok(vec![*value; self.shape.iter().product()]),
            Source::Numbers { .. } => Err("has whole numbers where floats are expected".to_owned()),
            Source::Tensor { tensor, transposed: false } => tensor.f32_values(path),
            Source::Tensor { tensor, transposed: true } => {
                let (values, rows) = (tensor.f32_values(path)?, self.shape[0]);
                let row = |first: usize| values[first..].iter().step_by(rows).copied();
                Ok((0..rows.min(values.len())).flat_map(row).collect())
            }
        }
    }
}

/// A place along an axis of `length`; negative ones count from the end.
fn place(at: i64, length: usize) -> i64 {
    if at < 0 { at.saturating_add(length as i64) } else { at }
}

impl<'a> Decoder<'a> {
    /// The sizes of a value, from `start` to `end`.
    pub(super) fn shape(&self, node: &Node) -> Result<Constant<'a>, String> {
        let sizes: Vec<Option<i64>> = match self.operand(node, 0)? {
            Value::Constant(constant) => constant.shape.iter().map(|&size| Some(size as i64)).collect(),
            Value::Activation { form, .. } => {
                let mut sizes = form.sizes();
                sizes[0] = self.batch;
                sizes
            }
            _ => return Err("reads a shape that is not known".to_owned()),
        };
        let rank = sizes.len();
        let bound = |at| place(at, rank).clamp(0, rank as i64) as usize;
        let (start, end) = (bound(int(node, "start", 0)?), bound(int(node, "end", rank as i64)?));
        let sizes = sizes.get(start..end).unwrap_or_default();
        Ok(Constant::list(sizes.iter().map(|size| size.map(|size| size as f64)).collect()))
    }

    /// What a node makes of constants.
    pub(super) fn fold(&self, node: &'a Node<'a>) -> Result<Constant<'a>, String> {
        let first = || self.constant(node, 0);
        match node.operator.as_str() {
            "Constant" => self.literal(node),
            "Identity" | "CastLike" | "Dropout" => first(),
            "Cast" => self.cast(node, first()?),
            "ConstantOfShape" => {
                let (value, whole) = match node.attributes.get("value") {
                    None => (0.0, false),
                    Some(Attribute::Tensor(tensor)) if tensor.len() == 1 && tensor.is_float() => {
                        (f64::from(tensor.f32_values(self.path)?[0]), false)
                    }
                    Some(Attribute::Tensor(tensor)) if tensor.len() == 1 => {
                        (tensor.i64_values(self.path)?[0] as f64, true)
                    }
                    Some(_) => return Err("has a value that is not one number".to_owned()),
                };
                Constant::same(value, positive(&first()?.ints()?)?, whole)
            }
            "Expand" => {
                let (constant, target) = (first()?, positive(&self.constant(node, 1)?.ints()?)?);
                if product(&constant.shape) == product(&target) {
                    return constant.reshaped(target).ok_or_else(|| "turns and repeats weights".to_owned());
                }
                match constant.few()? {
                    (_, values, whole) if values.len() == 1 && values[0].is_some() => {
                        Constant::same(values[0].unwrap_or_default(), target, whole)
                    }
                    _ => Err("repeats numbers in a way that is not understood".to_owned()),
                }
            }
            "Transpose" => {
                let turned = ints(node, "perm")?.is_none_or(|order| order == [1, 0]);
                let constant = first()?.transposed().filter(|_| turned);
                constant.ok_or_else(|| "turns a constant other than a matrix".to_owned())
            }
            "Reshape" | "Squeeze" | "Unsqueeze" => self.refold(node, &first()?),
            "Gather" => {
                let (array, places) = (first()?, self.constant(node, 1)?);
                let (_, values, whole) = array.few()?;
                let pick = |at: i64| {
                    let value = usize::try_from(place(at, values.len())).ok().and_then(|at| values.get(at));
                    value.copied().ok_or_else(|| format!("picks number {at} of {}", values.len()))
                };
                if array.shape.len() != 1 {
                    return Err("picks rows of an array, expected numbers of a list".to_owned());
                }
                let picked = places.ints()?.into_iter().map(pick).collect::<Result<Vec<_>, _>>()?;
                Ok(Constant::numbers(places.shape.clone(), picked, whole))
            }
            "Slice" => self.rows(node, &first()?),
            "Concat" => {
                let (mut joined, mut all_whole) = (Vec::new(), true);
                for index in 0..node.inputs.len() {
                    let constant = self.constant(node, index)?;
                    let (shape, values, whole) = constant.few()?;
                    joined.extend(values);
                    all_whole &= whole;
                    if shape.len() != 1 || joined.len() > MOST_NUMBERS {
                        return Err(format!("joins other than up to {MOST_NUMBERS} numbers"));
                    }
                }
                Ok(Constant::numbers(vec![joined.len()], joined, all_whole))
            }
            "Ceil" | "Floor" => {
                let constant = first()?;
                let (shape, values, whole) = constant.few()?;
                let up = node.operator == "Ceil";
                let round = |value: f64| if up { value.ceil() } else { value.floor() };
                let values = values.into_iter().map(|value| value.map(round)).collect();
                Ok(Constant::numbers(shape.to_vec(), values, whole))
            }
            "Clip" => {
                let constant = first()?;
                let (shape, values, whole) = constant.few()?;
                let bound = |index, none: f64| match self.optional(node, index)? {
                    None => Ok(none),
                    Some(bound) => bound.scalar().ok_or_else(|| "has a bound that is not known".to_owned()),
                };
                let (low, high) = (bound(1, f64::NEG_INFINITY)?, bound(2, f64::INFINITY)?);
                // As `clamp`, which would not have the bounds exchanged.
                let values =
                    values.into_iter().map(|value| value.map(|value| value.max(low).min(high))).collect();
                Ok(Constant::numbers(shape.to_vec(), values, whole))
            }
            "Add" | "Sub" | "Mul" | "Div" => self.arithmetic(node),
            _ => Err("computes with constants alone, expected images; simplify the graph".to_owned()),
        }
    }

    fn cast(&self, node: &Node, constant: Constant<'a>) -> Result<Constant<'a>, String> {
        let whole = matches!(int(node, "to", 1)?, 6 | 7);
        match (&constant.source, constant.few()) {
            // Weights stay floats, whatever their length.
            (Source::Tensor { .. } | Source::Same(_), Err(_)) if !whole => Ok(constant),
            (_, Ok((shape, values, _))) => {
                let values = values
                    .into_iter()
                    .map(|value| value.map(|value| if whole { value.trunc() } else { value }));
                Ok(Constant::numbers(shape.to_vec(), values.collect(), whole))
            }
            (_, Err(problem)) => Err(problem),
        }
    }

    fn arithmetic(&self, node: &Node) -> Result<Constant<'a>, String> {
        let (a, b) = (self.constant(node, 0)?, self.constant(node, 1)?);
        let ((a_shape, a, a_whole), (b_shape, b, b_whole)) = (a.few()?, b.few()?);
        let shape = if a.len() >= b.len() { a_shape } else { b_shape };
        let whole = a_whole && b_whole;
        if a.len() != b.len() && a.len() != 1 && b.len() != 1 {
            return Err(format!("computes with {} and {} numbers", a.len(), b.len()));
        }
        let compute = |a: f64, b: f64| {
            let value = match node.operator.as_str() {
                "Add" => a + b,
                "Sub" => a - b,
                "Mul" => a * b,
                _ if whole => (a / b).trunc(),
                _ => a / b,
            };
            value.is_finite().then_some(value).ok_or_else(|| format!("computes {a} and {b} to no number"))
        };
        let length = if a.is_empty() || b.is_empty() { 0 } else { a.len().max(b.len()) };
        let values = (0..length).map(|at| match (a[at % a.len()], b[at % b.len()]) {
            (Some(a), Some(b)) => compute(a, b).map(Some),
            _ => Ok(None),
        });
        Ok(Constant::numbers(shape.to_vec(), values.collect::<Result<_, String>>()?, whole))
    }

    fn literal(&self, node: &'a Node<'a>) -> Result<Constant<'a>, String> {
        let list = |values: &[i64]| Constant::list(values.iter().map(|&value| Some(value as f64)).collect());
        let Some((_, value)) = node.attributes.first_key_value().filter(|_| node.attributes.len() == 1)
        else {
            return Err(format!("has {} attributes, expected one value", node.attributes.len()));
        };
        match value {
            Attribute::Tensor(tensor) => Constant::new(&node.label(), tensor, self.path),
            Attribute::Ints(values) if values.len() <= MOST_NUMBERS => Ok(list(values)),
            Attribute::Int(value) => Ok(Constant { shape: Vec::new(), ..list(&[*value]) }),
            Attribute::Float(value) => {
                Ok(Constant { shape: Vec::new(), name: node.label(), source: Source::Same(*value) })
            }
            _ => Err("has a value that is neither a tensor nor a number".to_owned()),
        }
    }

    /// A constant in another shape.
    fn refold(&self, node: &Node, constant: &Constant<'a>) -> Result<Constant<'a>, String> {
        let refuse =
            || format!("gives a constant of the shape {:?} a shape that is not understood", constant.shape);
        let shape: Vec<usize> = match node.operator.as_str() {
            "Reshape" => {
                let target = self.constant(node, 1)?.ints()?;
                let size = |(index, &size): (usize, &i64)| match size {
                    -1 => Some(1),
                    0 => constant.shape.get(index).copied(),
                    size => usize::try_from(size).ok(),
                };
                let mut shape: Vec<usize> =
                    target.iter().enumerate().map(size).collect::<Option<_>>().ok_or_else(refuse)?;
                // What −1 stands for.
                if let Some(free) = target.iter().position(|&size| size == -1) {
                    let length = product(&constant.shape).ok_or_else(refuse)?;
                    let known = product(&shape).ok_or_else(refuse)?;
                    shape[free] = length.checked_div(known).ok_or_else(refuse)?;
                }
                shape
            }
            "Squeeze" => constant.shape.iter().copied().filter(|&size| size != 1).collect(),
            _ => {
                let axes = self.axes(node)?.unwrap_or_default();
                let mut shape = constant.shape.clone();
                let rank = shape.len() + axes.len();
                let mut places: Vec<i64> = axes.iter().map(|&axis| place(axis, rank)).collect();
                places.sort_unstable();
                for at in places {
                    let at = usize::try_from(at).ok().filter(|&at| at <= shape.len()).ok_or_else(refuse)?;
                    shape.insert(at, 1);
                }
                shape
            }
        };
        constant.reshaped(shape).ok_or_else(refuse)
    }

    /// The axes of a node: an attribute in earlier operator sets, the second input in later ones.
    pub(super) fn axes(&self, node: &Node) -> Result<Option<Vec<i64>>, String> {
        match ints(node, "axes")? {
            Some(axes) => Ok(Some(axes)),
            None => self.optional(node, 1)?.map(|axes| axes.ints()).transpose(),
        }
    }

    /// Rows of an array of numbers.
    fn rows(&self, node: &Node, array: &Constant<'a>) -> Result<Constant<'a>, String> {
        let (shape, values, whole) = array.few()?;
        let Some((&count, rest)) = shape.split_first() else { return Err("cuts a single number".to_owned()) };
        let [starts, ends, steps] = self.slice(node, shape.len())?;
        let cut = |axis: usize| starts[axis] != 0 || ends[axis] != i64::MAX || steps[axis] != 1;
        if (1..shape.len()).any(cut) || steps[0] == 0 {
            return Err("cuts an array otherwise than by rows".to_owned());
        }
        // As Python's slices; the places beyond the ends differ with the direction.
        let (step, last) = (steps[0], count as i64);
        let (low, high) = if step > 0 { (0, last) } else { (-1, last - 1) };
        let (start, end) = (place(starts[0], count).clamp(low, high), place(ends[0], count).clamp(low, high));
        let length = rest.iter().product::<usize>();
        let (mut kept, mut at) = (Vec::new(), start);
        while if step > 0 { at < end } else { at > end } {
            kept.extend_from_slice(&values[at as usize * length..][..length]);
            at = at.saturating_add(step);
        }
        let rows = kept.len().checked_div(length).unwrap_or(0);
        Ok(Constant::numbers([&[rows][..], rest].concat(), kept, whole))
    }

    /// Starts, ends and steps of a slice along `rank` axes, everything where an axis is not cut.
    pub(super) fn slice(&self, node: &Node, rank: usize) -> Result<[Vec<i64>; 3], String> {
        let list = |name: &str, index: usize| match ints(node, name)? {
            Some(values) => Ok(Some(values)),
            None => self.optional(node, index)?.map(|values| values.ints()).transpose(),
        };
        let (Some(starts), Some(ends)) = (list("starts", 1)?, list("ends", 2)?) else {
            return Err("has no starts and ends".to_owned());
        };
        let axes = list("axes", 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = self.optional(node, 4)?.map(|steps| steps.ints()).transpose()?;
        let steps = steps.unwrap_or_else(|| vec![1; starts.len()]);
        if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
            return Err("has starts, ends, axes and steps of different lengths".to_owned());
        }
        let mut cuts = [vec![0; rank], vec![i64::MAX; rank], vec![1; rank]];
        for (index, &axis) in axes.iter().enumerate() {
            let at = usize::try_from(place(axis, rank)).ok().filter(|&at| at < rank);
            let at = at.ok_or_else(|| format!("cuts along axis {axis} of {rank}"))?;
            for (cut, values) in cuts.iter_mut().zip([&starts, &ends, &steps]) {
                cut[at] = values[index];
            }
        }
        Ok(cuts)
    }
}

/// Sizes, none of which is negative.
fn positive(sizes: &[i64]) -> Result<Vec<usize>, String> {
    let size = |&size: &i64| usize::try_from(size).map_err(|_| format!("asks for a size of {size}"));
    sizes.iter().map(size).collect()
}
