//! The prefixes that wrappers put in front of a network's tensor names.

use super::state::StateDict;
use std::collections::BTreeMap;

/// What `torch.nn.DataParallel`, `torch.compile`, training wrappers and models with several parts put in front of names.
const WRAPPERS: [&str; 4] = ["module.", "_orig_mod.", "model.", "backbone."];

/// A file's tensors after a wrapper's prefix was removed.
#[derive(Debug)]
pub struct Unwrapped {
    /// The prefix, which may be several in a row; empty when nothing was removed.
    pub prefix: String,
    /// The tensors. Those that did not have the prefix keep their names.
    pub state: StateDict,
    /// Tensors without the prefix whose name another one has now; they are left out.
    pub shadowed: Vec<String>,
}

/// Removes the prefix under which most of the names that the network knows are found; nothing, where as many are found as
/// they are.
pub fn unwrap(state: StateDict, known: &dyn Fn(&str) -> bool) -> Unwrapped {
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    for name in state.names() {
        let mut at = 0;
        loop {
            if known(&name[at..]) {
                *found.entry(&name[..at]).or_default() += 1;
            }
            match WRAPPERS.into_iter().find(|wrapper| name[at..].starts_with(wrapper)) {
                Some(wrapper) => at += wrapper.len(),
                None => break,
            }
        }
    }
    let fewest_wrappers = |prefix: &str| std::cmp::Reverse(prefix.len());
    let best = found.into_iter().max_by_key(|&(prefix, count)| (count, fewest_wrappers(prefix)));
    let prefix = best.map_or_else(String::new, |(prefix, _)| prefix.to_string());
    if prefix.is_empty() {
        return Unwrapped { prefix, state, shadowed: Vec::new() };
    }
    let (state, shadowed) = state.without_prefix(&prefix);
    Unwrapped { prefix, state, shadowed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::NamedTensor;

    fn state(names: &[&str]) -> StateDict {
        let mut state = StateDict::new();
        for name in names {
            state.insert(NamedTensor { name: (*name).into(), shape: vec![], values: vec![1.0] }).unwrap();
        }
        state
    }

    fn unwrapped(names: &[&str]) -> (String, Vec<String>, Vec<String>) {
        let known = |name: &str| ["conv1.weight", "bn1.bias", "fc.bias"].contains(&name);
        let Unwrapped { prefix, state, shadowed } = unwrap(state(names), &known);
        (prefix, state.names().map(str::to_owned).collect(), shadowed)
    }

    fn expect(names: &[&str], prefix: &str, after: &[&str], shadowed: &[&str]) {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(unwrapped(names), (prefix.to_owned(), owned(after), owned(shadowed)));
    }

    #[test]
    fn prefixes_are_removed_in_any_order_and_number() {
        expect(&["bn1.bias", "conv1.weight"], "", &["bn1.bias", "conv1.weight"], &[]);
        for prefix in ["module.", "_orig_mod.", "model.", "backbone.", "_orig_mod.module.model.backbone."] {
            let names = ["bn1.bias", "conv1.weight"].map(|name| format!("{prefix}{name}"));
            expect(&names.each_ref().map(String::as_str), prefix, &["bn1.bias", "conv1.weight"], &[]);
        }
        expect(&["other.conv1.weight"], "", &["other.conv1.weight"], &[]);
        expect(&["module."], "", &["module."], &[]);
    }

    #[test]
    fn names_beside_the_network_keep_theirs() {
        let names = ["backbone.conv1.weight", "head.bias", "step"];
        expect(&names, "backbone.", &["conv1.weight", "head.bias", "step"], &[]);
    }

    #[test]
    fn of_two_networks_the_larger_part_is_taken() {
        let averaged = ["bn1.bias", "conv1.weight", "module.bn1.bias", "module.conv1.weight"];
        expect(&averaged, "", &averaged, &[]);
        let both = ["backbone.bn1.bias", "backbone.conv1.weight", "backbone.fc.bias", "fc.bias"];
        expect(&both, "backbone.", &["bn1.bias", "conv1.weight", "fc.bias"], &["fc.bias"]);
    }
}
