//! From what a pickle says to tensors with values.

use super::archive::{Archive, Entry};
use super::pickle::Pickle;
use super::value::{Heap, Storage, StorageType, Value, View};
use super::{DEEPEST, PARTS, Problem};
use crate::weights::dtype::{Dtype, PIECE};
use crate::weights::error::printable;
use crate::weights::state::{StateDict, TensorValues};
use std::collections::BTreeMap;
use std::io::{Read, Seek};

/// Tensors may share their storages; all together may have so many times the bytes of the file.
const MOST_SHARING: u64 = 4;

/// A tensor's name with its place in the heap.
type Named = (String, usize);

/// The tensors of the state dict that a pickle is or contains, and under which keys it was.
pub(super) fn named_tensors(pickle: &Pickle) -> Result<(Vec<Named>, String), Problem> {
    let heap = &pickle.heap;
    let (mut dict, mut path) = (pickle.root, Vec::new());
    let with_tensors = with_tensors(heap);
    for _ in 0..DEEPEST {
        let Value::Dict(entries) = dict else { break };
        let entries = &heap.dicts[entries];
        let part = |name: &&str| {
            let of_part = |&(key, value): &(Value, Value)| match value {
                Value::Dict(inner) if with_tensors[inner] && text(heap, key) == Some(name) => Some(value),
                _ => None,
            };
            entries.iter().rev().find_map(of_part)
        };
        if let Some((name, inner)) = PARTS.iter().find_map(|name| Some((*name, part(name)?))) {
            path.push(name);
            dict = inner;
            continue;
        }
        let mut tensors = Vec::new();
        for &(key, value) in entries {
            if let (Some(name), Value::Tensor(tensor)) = (text(heap, key), value) {
                tensors.push((name.to_owned(), tensor));
            }
        }
        if !tensors.is_empty() {
            return Ok((tensors, path.join(".")));
        }
        break;
    }
    let found = match dict {
        Value::Tensor(_) => "a single tensor",
        Value::Dict(_) => "a dictionary without tensors",
        Value::List(_) | Value::Tuple(_) => "a list",
        _ => "no tensors",
    };
    Err(Problem::foreign(format!("it contains {found}, expected a state dict, or a checkpoint with one")))
}

/// For each dictionary, whether it has tensors, or under one of the usual keys another one that has. Each is looked at a
/// fixed number of times, however they refer to each other.
fn with_tensors(heap: &Heap) -> Vec<bool> {
    let mut with = vec![false; heap.dicts.len()];
    for _ in 0..DEEPEST {
        for (place, entries) in heap.dicts.iter().enumerate() {
            with[place] = with[place]
                || entries.iter().any(|&(key, value)| match value {
                    Value::Tensor(_) => true,
                    Value::Dict(inner) => {
                        with[inner] && text(heap, key).is_some_and(|key| PARTS.contains(&key))
                    }
                    _ => false,
                });
        }
    }
    with
}

fn text(heap: &Heap, value: Value) -> Option<&str> {
    match value {
        Value::Text(text) => Some(&heap.texts[text]),
        _ => None,
    }
}

/// A tensor that is to be cut out of a storage.
struct Cut<'a> {
    name: String,
    view: &'a View,
    /// Number of values.
    count: usize,
}

/// Reads the values of the tensors, storage by storage.
pub(super) fn read_tensors(
    archive: &mut Archive<impl Read + Seek>,
    folder: &str,
    heap: &Heap,
    tensors: Vec<Named>,
) -> Result<StateDict, Problem> {
    let mut storages: BTreeMap<&str, (Storage, Vec<Cut>)> = BTreeMap::new();
    let (mut wanted, mut held) = (0u64, 0u64);
    for (name, tensor) in tensors {
        let view = &heap.tensors[tensor];
        let storage = heap.storages[view.storage];
        let dtype = dtype(&name, storage.kind)?;
        let count = check_view(&name, view, storage)?;
        wanted = wanted.saturating_add((count as u64).saturating_mul(dtype.size() as u64));
        let (known, cuts) = storages.entry(&heap.texts[storage.key]).or_insert_with(|| (storage, Vec::new()));
        if (known.kind, known.len) != (storage.kind, storage.len) {
            let key = printable(&heap.texts[storage.key]);
            return Err(Problem::damaged(format!("it describes the storage {key} in two ways")));
        }
        cuts.push(Cut { name, view, count });
    }
    let mut entries = Vec::new();
    for (key, (storage, cuts)) in storages {
        let entry = find_entry(archive, folder, key, storage, &cuts[0].name)?;
        held += entry.size;
        entries.push((entry, storage, cuts));
    }
    if wanted > held.saturating_mul(MOST_SHARING) {
        let problem =
            format!("its tensors have {wanted} bytes, {held} are in their storages: too many share one");
        return Err(Problem::foreign(problem));
    }
    let mut state = StateDict::new();
    let mut piece = vec![0; PIECE];
    for (entry, storage, cuts) in entries {
        let dtype = dtype(&cuts[0].name, storage.kind)?;
        let values = archive.stream(&entry, |mut from| dtype.decode(&mut from, &mut piece, storage.len))?;
        cut(&mut state, values, cuts)?;
    }
    Ok(state)
}

/// The entry with a storage's values.
fn find_entry(
    archive: &Archive<impl Read + Seek>,
    folder: &str,
    key: &str,
    storage: Storage,
    tensor: &str,
) -> Result<Entry, Problem> {
    let name = format!("{folder}data/{key}");
    let entry = archive.entry(&name).ok_or_else(|| {
        Problem::damaged(format!(
            "the values of the tensor {} ({}) are not in it",
            printable(tensor),
            printable(&name)
        ))
    })?;
    let bytes = storage.len.checked_mul(dtype(tensor, storage.kind)?.size());
    if bytes != Some(entry.size as usize) {
        let (name, len, kind) = (printable(&name), storage.len, storage.kind.name());
        return Err(Problem::damaged(format!(
            "its entry {name} has {} bytes, expected those of {len} values of {kind}",
            entry.size
        )));
    }
    Ok(entry.clone())
}

fn dtype(tensor: &str, kind: StorageType) -> Result<Dtype, Problem> {
    Ok(match kind {
        StorageType::Float => Dtype::F32,
        StorageType::Half => Dtype::F16,
        StorageType::BFloat16 => Dtype::Bf16,
        StorageType::Double => Dtype::F64,
        StorageType::Long => Dtype::I64,
        other => return Err(Problem::Dtype { tensor: printable(tensor), dtype: other.name().to_owned() }),
    })
}

/// Checks that a view stays within its storage, and has no more values; returns their number.
fn check_view(name: &str, view: &View, storage: Storage) -> Result<usize, Problem> {
    let outside = || {
        let View { offset, shape, strides, .. } = view;
        Problem::damaged(format!(
            "the tensor {} of shape {shape:?}, strides {strides:?} and offset {offset} does not fit into its storage of {} values",
            printable(name),
            storage.len
        ))
    };
    let count =
        view.shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size)).ok_or_else(outside)?;
    if count == 0 {
        return Ok(0);
    }
    let last =
        view.shape.iter().zip(&view.strides).try_fold(view.offset, |last, (&size, &stride)| {
            last.checked_add((size - 1).checked_mul(stride)?)
        });
    match last {
        Some(last) if last < storage.len && count <= storage.len => Ok(count),
        _ => Err(outside()),
    }
}

/// Cuts tensors out of their storage's values.
fn cut(state: &mut StateDict, values: TensorValues, mut cuts: Vec<Cut>) -> Result<(), Problem> {
    let whole = |cut: &Cut| cut.count == values.len() && cut.count > 0 && is_contiguous(cut.view);
    if let [only] = &mut cuts[..]
        && whole(only)
    {
        let name = std::mem::take(&mut only.name);
        return state.insert_values(name, only.view.shape.clone(), values).map_err(Problem::State);
    }
    for Cut { name, view, count } in cuts {
        let cut = match &values {
            TensorValues::F32(values) => TensorValues::F32(gather(values, view, count)),
            TensorValues::I64(values) => TensorValues::I64(gather(values, view, count)),
        };
        state.insert_values(name, view.shape.clone(), cut).map_err(Problem::State)?;
    }
    Ok(())
}

/// Whether a view's values lie one behind the other.
fn is_contiguous(view: &View) -> bool {
    let mut expected = 1;
    view.shape.iter().zip(&view.strides).rev().all(|(&size, &stride)| {
        let fits = size == 1 || stride == expected;
        expected *= size;
        fits
    })
}

/// The values of a view that has been checked, in row-major order.
fn gather<T: Copy>(values: &[T], view: &View, count: usize) -> Vec<T> {
    if count > 0 && is_contiguous(view) {
        return values[view.offset..view.offset + count].to_vec();
    }
    let mut gathered = Vec::with_capacity(count);
    let mut index = vec![0; view.shape.len()];
    let mut at = view.offset;
    while gathered.len() < count {
        gathered.push(values[at]);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            at += view.strides[axis];
            if index[axis] < view.shape[axis] {
                break;
            }
            at -= index[axis] * view.strides[axis];
            index[axis] = 0;
        }
    }
    gathered
}
