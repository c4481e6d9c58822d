//! A network's weights as named tensors.

use super::error::WeightsError;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// A tensor of `f32` values with its name, in torch's layout.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// torch's name, such as `layer2.0.conv1.weight`.
    pub name: String,
    /// OIHW for a convolution, `[out, in]` for a linear layer, `[C]` for a vector, `[]` for a scalar.
    pub shape: Vec<usize>,
    /// The values in row-major order.
    pub values: Vec<f32>,
}

/// The values of a tensor in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorValues {
    /// Weights, biases and running statistics.
    F32(Vec<f32>),
    /// Counters, such as `num_batches_tracked`.
    I64(Vec<i64>),
}

impl TensorValues {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            TensorValues::F32(values) => values.len(),
            TensorValues::I64(values) => values.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of values that are NaN or infinite.
    pub fn non_finite(&self) -> usize {
        match self {
            TensorValues::F32(values) => values.iter().filter(|value| !value.is_finite()).count(),
            TensorValues::I64(_) => 0,
        }
    }
}

/// A tensor without its name. The number of values is the product of the sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorEntry {
    shape: Vec<usize>,
    values: TensorValues,
}

impl TensorEntry {
    /// The shape in torch's layout; `[]` is a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The values.
    pub fn values(&self) -> &TensorValues {
        &self.values
    }

    /// The `f32` values, or nothing when the tensor holds integers.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.values {
            TensorValues::F32(values) => Some(values),
            TensorValues::I64(_) => None,
        }
    }

    /// The `i64` values, or nothing when the tensor holds floating-point numbers.
    pub fn as_i64(&self) -> Option<&[i64]> {
        match &self.values {
            TensorValues::I64(values) => Some(values),
            TensorValues::F32(_) => None,
        }
    }

    /// The shape and the values.
    pub fn into_parts(self) -> (Vec<usize>, TensorValues) {
        (self.shape, self.values)
    }
}

/// Named tensors, in the order of their names (torch's `state_dict`).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StateDict {
    entries: BTreeMap<String, TensorEntry>,
}

impl StateDict {
    /// No tensors yet.
    pub fn new() -> Self {
        StateDict::default()
    }

    /// Adds a tensor of `f32` values.
    ///
    /// # Errors
    /// As [`StateDict::insert_values`].
    pub fn insert(&mut self, tensor: NamedTensor) -> Result<(), WeightsError> {
        self.insert_values(tensor.name, tensor.shape, TensorValues::F32(tensor.values))
    }

    /// Adds a tensor of `f32` or `i64` values.
    ///
    /// # Errors
    /// When the values do not fill the shape, or the name is empty, reserved or already there.
    pub fn insert_values(
        &mut self,
        name: String,
        shape: Vec<usize>,
        values: TensorValues,
    ) -> Result<(), WeightsError> {
        if let Some(problem) = reserved(&name) {
            return Err(WeightsError::Name { tensor: name, problem });
        }
        let length = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        if length != Some(values.len()) {
            return Err(WeightsError::Length { tensor: name, shape, found: values.len() });
        }
        match self.entries.entry(name) {
            Entry::Occupied(taken) => {
                Err(WeightsError::Name { tensor: taken.key().clone(), problem: "used twice" })
            }
            Entry::Vacant(free) => {
                free.insert(TensorEntry { shape, values });
                Ok(())
            }
        }
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&TensorEntry> {
        self.entries.get(name)
    }

    /// Takes the tensor of this name out, without copying its values.
    pub fn take(&mut self, name: &str) -> Option<TensorEntry> {
        self.entries.remove(name)
    }

    /// The tensors in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &TensorEntry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// The names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The names of the tensors with NaN or infinite values, and how many of them each has.
    pub fn non_finite(&self) -> Vec<(String, usize)> {
        self.iter()
            .map(|(name, entry)| (name.to_string(), entry.values.non_finite()))
            .filter(|&(_, count)| count > 0)
            .collect()
    }

    /// Puts a tensor in the place of the one of this name, or beside the others; its values fill its shape.
    pub(crate) fn replace(&mut self, tensor: NamedTensor) {
        let NamedTensor { name, shape, values } = tensor;
        self.entries.insert(name, TensorEntry { shape, values: TensorValues::F32(values) });
    }

    /// The same tensors with `prefix` removed from every name that has it; and the names of those without it that another
    /// tensor has now, which are left out.
    pub(super) fn without_prefix(self, prefix: &str) -> (Self, Vec<String>) {
        let (mut inside, mut outside) = (BTreeMap::new(), Vec::new());
        for (name, entry) in self.entries {
            match name.strip_prefix(prefix).filter(|rest| reserved(rest).is_none()) {
                Some(rest) => {
                    inside.insert(rest.to_string(), entry);
                }
                None => outside.push((name, entry)),
            }
        }
        let mut shadowed = Vec::new();
        for (name, entry) in outside {
            match inside.entry(name) {
                Entry::Occupied(taken) => shadowed.push(taken.key().clone()),
                Entry::Vacant(free) => {
                    free.insert(entry);
                }
            }
        }
        (StateDict { entries: inside }, shadowed)
    }
}

/// Why a tensor may not have this name.
fn reserved(name: &str) -> Option<&'static str> {
    match name {
        "" => Some("empty"),
        "__metadata__" => Some("reserved by the safetensors format"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(name: &str, values: &[f32]) -> NamedTensor {
        NamedTensor { name: name.to_string(), shape: vec![values.len()], values: values.to_vec() }
    }

    #[test]
    fn values_fill_shapes_and_names_are_unique() {
        let mut state = StateDict::new();
        state.insert(vector("bn1.weight", &[1.0, 2.0])).unwrap();
        let error = state.insert(vector("bn1.weight", &[3.0])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the tensor name bn1.weight is used twice; give every tensor a name of its own"
        );
        assert!(state.insert(vector("__metadata__", &[3.0])).is_err());
        assert!(state.insert(vector("", &[3.0])).is_err());
        let short = NamedTensor { name: "conv1.weight".into(), shape: vec![2, 1, 1, 1], values: vec![0.0] };
        let error = state.insert(short).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the tensor conv1.weight has 1 values, which do not fill its shape [2, 1, 1, 1]"
        );
        let overflow = NamedTensor { name: "x".into(), shape: vec![usize::MAX, 2], values: vec![] };
        assert!(state.insert(overflow).is_err());
        assert_eq!(state.get("bn1.weight").unwrap().as_f32(), Some(&[1.0, 2.0][..]));
        assert_eq!(state.len(), 1);
    }

    #[test]
    fn scalars_have_one_value_and_order_is_by_name() {
        let mut state = StateDict::new();
        state.insert(vector("b", &[f32::NAN, 1.0, f32::INFINITY])).unwrap();
        state.insert_values("a".into(), vec![], TensorValues::I64(vec![7])).unwrap();
        assert_eq!(state.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(state.non_finite(), [("b".to_string(), 2)]);
        assert_eq!(state.take("a").unwrap().as_i64(), Some(&[7][..]));
        assert!(state.get("a").is_none());
    }
}
