//! A network's weights under their torch names, out and in.

use super::Network;
use crate::Error;
use crate::kernels::{Context, Space, with_free};
use crate::layer::Parameter;
use crate::weights::{
    Account, Expected, NamedTensor, StateDict, TensorEntry, TensorValues, UnusedTensors, fit,
};
use std::path::Path;

impl Network {
    /// All parameters and running statistics under their torch names, in torch's layout.
    ///
    /// # Errors
    /// When two tensors have the same name, which a valid description does not give.
    pub fn state(&self) -> Result<StateDict, Error> {
        let mut state = StateDict::new();
        for parameter in self.parameters() {
            let Parameter { name, shape, value, .. } = parameter;
            let values = parameter.to_torch(value);
            state.insert(NamedTensor { name: name.clone(), shape: shape.clone(), values })?;
        }
        for norm in self.norms() {
            for (part, values) in [("running_mean", &norm.running_mean), ("running_var", &norm.running_var)] {
                let name = format!("{}.{part}", norm.name);
                state.insert(NamedTensor { name, shape: vec![values.len()], values: values.clone() })?;
            }
            let name = format!("{}.num_batches_tracked", norm.name);
            state.insert_values(name, vec![], TensorValues::I64(vec![norm.batches]))?;
        }
        Ok(state)
    }

    /// Replaces all parameters and running statistics by those of `state`, which came from the file `path`.
    ///
    /// # Errors
    /// When a tensor is missing, unknown or has another shape; the error lists all of them, and nothing is changed.
    pub fn load(&mut self, cx: &Context, path: &Path, state: StateDict) -> Result<Account, Error> {
        let tensors = self.arch.structure()?.tensors();
        let expected: Vec<Expected> =
            tensors.into_iter().map(|tensor| Expected { name: tensor.name, shape: tensor.shape }).collect();
        let (mut state, account) = fit(state, &self.arch.name, &expected);
        account.check(path, UnusedTensors::Refuse)?;
        let mut take = |name: &str| match state.take(name).map(TensorEntry::into_parts) {
            Some((_, TensorValues::F32(values))) => Some(values),
            _ => None,
        };
        let taken = self.parameters_mut().map(|parameter| (take(&parameter.name), parameter));
        let mut taken: Vec<(Option<Vec<f32>>, &mut Parameter)> = taken.collect();
        let spaces: Vec<Space<Vec<f32>>> = (0..cx.threads()).map(|_| Space::default()).collect();
        cx.pool().pieces(&mut taken, 1, |_, piece| {
            let (values, parameter) = &mut piece[0];
            if let Some(values) = values.take() {
                parameter.value = with_free(&spaces, |space| parameter.from_torch(values, space));
            }
        });
        for norm in self.norms_mut() {
            if let Some(values) = take(&format!("{}.running_mean", norm.name)) {
                norm.running_mean = values;
            }
            if let Some(values) = take(&format!("{}.running_var", norm.name)) {
                norm.running_var = values;
            }
        }
        for norm in self.norms_mut() {
            let count =
                state.get(&format!("{}.num_batches_tracked", norm.name)).and_then(TensorEntry::as_i64);
            norm.batches = count.and_then(|count| count.first().copied()).unwrap_or(0);
        }
        Ok(account)
    }
}
