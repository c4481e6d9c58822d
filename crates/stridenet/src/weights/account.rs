//! Which of a file's tensors a network can use, and which it cannot.

use super::error::{WeightsError, count, printable};
use super::prefix::{Unwrapped, unwrap};
use super::state::StateDict;
use crate::spelling::edit_distance;
use serde::Serialize;
use std::collections::HashSet;
use std::fmt;
use std::path::Path;

/// The one counter a batch norm has; inference and training with a fixed momentum do without it.
const COUNTER: &str = "num_batches_tracked";
/// How many unused tensors get a suggestion and a place in the message; a file can hold any number of them.
const LISTED: usize = 50;

/// A tensor that a network has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// torch's name.
    pub name: String,
    /// The shape in torch's layout.
    pub shape: Vec<usize>,
}

/// A tensor of the file that the network has not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unused {
    /// Its name, without the wrapper's prefix.
    pub name: String,
    /// The missing tensor of the same shape with the most similar name; looked for in the first 50 unused tensors.
    pub did_you_mean: Option<String>,
}

/// A tensor whose shape is not the network's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// Its name.
    pub name: String,
    /// The network's shape.
    pub expected: Vec<usize>,
    /// The file's shape.
    pub found: Vec<usize>,
}

/// Whether tensors that the network has not are an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnusedTensors {
    /// They are, as with `load_state_dict(strict=True)`: weights of resnet34 contain everything resnet18 asks for.
    Refuse,
    /// They are only reported, for example when the classifier is replaced.
    Allow,
}

/// What became of every tensor that the network or the file has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// What the tensors were matched against, for messages, such as `resnet18`.
    pub network: String,
    /// Under which keys of a checkpoint the tensors were, such as `state_dict`; empty where the file was nothing but weights.
    pub part: String,
    /// The wrapper's prefix that was removed from the file's names.
    pub stripped: String,
    /// Tensors that fit.
    pub applied: Vec<String>,
    /// Tensors that were given initial values, because that was asked for.
    pub reinitialised: Vec<String>,
    /// Tensors that fit after they were changed, because that was asked for.
    pub adapted: Vec<String>,
    /// Tensors that the file has not; `num_batches_tracked` may be missing and is not listed.
    pub missing: Vec<String>,
    /// Tensors that the network has not.
    pub unused: Vec<Unused>,
    /// Tensors of another shape.
    pub mismatched: Vec<Mismatch>,
    /// Tensors that hold integers where the network has floating-point numbers.
    pub integers: Vec<String>,
}

/// Matches a file's tensors with those of `network`. The prefix of a wrapper is removed. Returns the tensors under the
/// network's names, and the account.
pub fn fit(state: StateDict, network: &str, expected: &[Expected]) -> (StateDict, Account) {
    let known: HashSet<&str> = expected.iter().map(|tensor| tensor.name.as_str()).collect();
    let unwrapped = unwrap(state, &|name| known.contains(name));
    fit_unwrapped(unwrapped, network, expected)
}

/// As [`fit`], where the prefix has been removed already.
pub fn fit_unwrapped(unwrapped: Unwrapped, network: &str, expected: &[Expected]) -> (StateDict, Account) {
    let known: HashSet<&str> = expected.iter().map(|tensor| tensor.name.as_str()).collect();
    let Unwrapped { prefix, state, shadowed } = unwrapped;
    let mut account = Account { network: network.to_string(), stripped: prefix, ..Account::default() };
    for Expected { name, shape } in expected {
        let counter = name.ends_with(COUNTER);
        match state.get(name) {
            None if counter => {}
            None => account.missing.push(name.clone()),
            Some(entry) if entry.shape() != shape => account.mismatched.push(Mismatch {
                name: name.clone(),
                expected: shape.clone(),
                found: entry.shape().to_vec(),
            }),
            Some(entry) if entry.as_f32().is_none() && !counter => account.integers.push(name.clone()),
            Some(_) => account.applied.push(name.clone()),
        }
    }
    let missing: HashSet<&str> = account.missing.iter().map(String::as_str).collect();
    let missing: Vec<&Expected> =
        expected.iter().filter(|tensor| missing.contains(tensor.name.as_str())).collect();
    for (name, entry) in state.iter().filter(|(name, _)| !known.contains(name)) {
        let listed = account.unused.len() < LISTED;
        let did_you_mean = if listed { most_similar(name, entry.shape(), &missing) } else { None };
        account.unused.push(Unused { name: name.to_string(), did_you_mean });
    }
    account.unused.extend(shadowed.into_iter().map(|name| Unused { name, did_you_mean: None }));
    (state, account)
}

impl Account {
    /// Whether every tensor of the network was found and fits.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.mismatched.is_empty() && self.integers.is_empty()
    }

    /// Makes one error of everything that is wrong; `path` is the file the tensors came from.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape or holds integers, or there are unused tensors and `unused` refuses
    /// them.
    pub fn check(&self, path: &Path, unused: UnusedTensors) -> Result<(), WeightsError> {
        if self.is_complete() && (unused == UnusedTensors::Allow || self.unused.is_empty()) {
            return Ok(());
        }
        Err(WeightsError::Misfit { path: path.to_path_buf(), account: Box::new(self.clone()) })
    }

    /// Everything that is wrong, on one line.
    pub(super) fn problems(&self) -> String {
        let mut parts = Vec::new();
        let mut list = |names: Vec<String>, problem: &str| {
            if !names.is_empty() {
                parts.push(format!("{} {problem} ({})", count(names.len(), "tensor"), names.join(", ")));
            }
        };
        list(self.missing.clone(), "missing");
        let shapes = |wrong: &Mismatch| {
            format!("{}: found {:?}, expected {:?}", wrong.name, wrong.found, wrong.expected)
        };
        list(self.mismatched.iter().map(shapes).collect(), "of the wrong shape");
        list(self.integers.clone(), "of integers instead of floating-point numbers");
        if !self.unused.is_empty() {
            let (number, names) = (count(self.unused.len(), "tensor"), self.list_unused().join(", "));
            parts.push(format!("{number} that the network has not ({names})"));
        }
        parts.join(", ")
    }

    /// The unused tensors; the file decides how many there are, so a long list is cut.
    fn list_unused(&self) -> Vec<String> {
        let mut listed: Vec<String> = self.unused[..self.unused.len().min(LISTED)]
            .iter()
            .map(|Unused { name, did_you_mean }| match did_you_mean {
                Some(meant) => format!("{}, did you mean {meant}?", printable(name)),
                None => printable(name),
            })
            .collect();
        if self.unused.len() > LISTED {
            listed.push(format!("and {} more", self.unused.len() - LISTED));
        }
        listed
    }
}

impl fmt::Display for Account {
    /// Everything on one line: `320 applied, the prefix module. removed`.
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{} applied", self.applied.len())?;
        if !self.part.is_empty() {
            write!(formatter, " from the checkpoint's {}", self.part)?;
        }
        if !self.stripped.is_empty() {
            write!(formatter, ", the prefix {} removed", self.stripped)?;
        }
        for (names, what) in [(&self.reinitialised, "initialised anew"), (&self.adapted, "adapted")] {
            if !names.is_empty() {
                write!(formatter, ", {} {what} ({})", names.len(), names.join(", "))?;
            }
        }
        match self.problems() {
            problems if problems.is_empty() => Ok(()),
            problems => write!(formatter, ", {problems}"),
        }
    }
}

/// The missing tensor that `name` was probably meant to be: the only one of its shape, or the one of its shape whose
/// name differs in fewer than half of its characters.
fn most_similar(name: &str, shape: &[usize], missing: &[&Expected]) -> Option<String> {
    const LONGEST: usize = 200;
    if name.len() > LONGEST {
        return None;
    }
    let alike: Vec<&&Expected> = missing.iter().filter(|tensor| tensor.shape == shape).collect();
    if let [only] = alike[..] {
        return Some(only.name.clone());
    }
    let (distance, nearest) =
        alike.iter().map(|tensor| (edit_distance(name, &tensor.name), &tensor.name)).min()?;
    (distance < name.len().max(nearest.len()).div_ceil(2)).then(|| nearest.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{NamedTensor, TensorValues};

    fn expected(tensors: &[(&str, &[usize])]) -> Vec<Expected> {
        tensors.iter().map(|&(name, shape)| Expected { name: name.into(), shape: shape.to_vec() }).collect()
    }

    fn state(tensors: &[(&str, &[usize])]) -> StateDict {
        let mut state = StateDict::new();
        for &(name, shape) in tensors {
            let values = vec![0.5; shape.iter().product()];
            state.insert(NamedTensor { name: name.into(), shape: shape.to_vec(), values }).unwrap();
        }
        state
    }

    const NETWORK: [(&str, &[usize]); 5] = [
        ("conv1.weight", &[4, 3, 7, 7]),
        ("bn1.weight", &[4]),
        ("bn1.num_batches_tracked", &[]),
        ("fc.weight", &[2, 4]),
        ("fc.bias", &[2]),
    ];

    #[test]
    fn one_line_lists_every_wrong_tensor() {
        let (_, account) = fit(
            state(&[("conv1.weight", &[4, 1, 7, 7]), ("bn1.weight", &[4]), ("head.weight", &[2, 4])]),
            "resnet18",
            &expected(&NETWORK),
        );
        assert_eq!(account.applied, ["bn1.weight"]);
        let error = account.check(Path::new("model.safetensors"), UnusedTensors::Allow).unwrap_err();
        assert_eq!(
            error.to_string(),
            "model.safetensors does not fit resnet18: 2 tensors missing (fc.weight, fc.bias), \
             1 tensor of the wrong shape (conv1.weight: found [4, 1, 7, 7], expected [4, 3, 7, 7]), \
             1 tensor that the network has not (head.weight, did you mean fc.weight?); \
             choose the architecture and the number of classes it was saved with, or another file"
        );
    }

    #[test]
    fn everything_found_is_no_error_and_the_counter_may_be_missing() {
        let all = state(&NETWORK[..2].iter().chain(&NETWORK[3..]).copied().collect::<Vec<_>>());
        let (state, account) = fit(all, "resnet18", &expected(&NETWORK));
        account.check(Path::new("model.safetensors"), UnusedTensors::Refuse).unwrap();
        assert_eq!(account.applied.len(), 4);
        assert!(state.get("fc.bias").is_some());
    }

    #[test]
    fn tensors_of_a_larger_network_are_refused_unless_allowed() {
        let mut larger = NETWORK.to_vec();
        larger.push(("layer1.2.bn1.weight", &[4]));
        let (_, account) = fit(state(&larger), "resnet18", &expected(&NETWORK));
        assert!(account.is_complete());
        let error = account.check(Path::new("m"), UnusedTensors::Refuse).unwrap_err().to_string();
        assert!(error.contains("1 tensor that the network has not (layer1.2.bn1.weight)"), "{error}");
        account.check(Path::new("m"), UnusedTensors::Allow).unwrap();
    }

    #[test]
    fn wrappers_are_removed() {
        let wrapped: Vec<(String, &[usize])> =
            NETWORK.iter().map(|(name, shape)| (format!("_orig_mod.module.model.{name}"), *shape)).collect();
        let named: Vec<(&str, &[usize])> =
            wrapped.iter().map(|(name, shape)| (name.as_str(), *shape)).collect();
        let (unwrapped, account) = fit(state(&named), "resnet18", &expected(&NETWORK));
        account.check(Path::new("m"), UnusedTensors::Refuse).unwrap();
        assert_eq!(account.stripped, "_orig_mod.module.model.");
        assert!(unwrapped.get("conv1.weight").is_some());

        // What has not the prefix is reported under its own name.
        let mut partly = named.clone();
        partly.push(("fc.bias", &[2]));
        partly.push(("step", &[1]));
        let (_, account) = fit(state(&partly), "resnet18", &expected(&NETWORK));
        assert!(account.is_complete());
        let unused: Vec<&str> = account.unused.iter().map(|unused| unused.name.as_str()).collect();
        assert_eq!(unused, ["step", "fc.bias"]);
        assert_eq!(
            account.to_string(),
            "5 applied, the prefix _orig_mod.module.model. removed, 2 tensors that the network has not (step, fc.bias)"
        );
    }

    #[test]
    fn integers_are_refused_except_as_the_counter() {
        let mut integers = state(&NETWORK[..1]);
        integers.insert_values("bn1.weight".into(), vec![4], TensorValues::I64(vec![1; 4])).unwrap();
        integers.insert_values("bn1.num_batches_tracked".into(), vec![], TensorValues::I64(vec![9])).unwrap();
        let (_, account) = fit(integers, "resnet18", &expected(&NETWORK[..3]));
        assert_eq!(account.integers, ["bn1.weight"]);
        assert_eq!(account.applied, ["conv1.weight", "bn1.num_batches_tracked"]);
        assert!(account.check(Path::new("m"), UnusedTensors::Refuse).is_err());
    }

    #[test]
    fn suggestions_are_similar_names_of_the_same_shape() {
        let network =
            expected(&[("layer1.0.bn1.bias", &[4]), ("layer2.0.bn1.bias", &[4]), ("fc.bias", &[2])]);
        let missing: Vec<&Expected> = network.iter().collect();
        assert_eq!(most_similar("layers.2.0.bn1.bias", &[4], &missing).as_deref(), Some("layer2.0.bn1.bias"));
        assert_eq!(most_similar("optimizer.step", &[4], &missing), None);
        assert_eq!(most_similar("head.bias", &[2], &missing).as_deref(), Some("fc.bias"));
        assert_eq!(most_similar("head.bias", &[3], &missing), None);
        assert_eq!(most_similar(&"x".repeat(100_000), &[4], &missing), None);
    }
}
