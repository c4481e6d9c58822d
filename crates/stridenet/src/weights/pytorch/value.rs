//! What a pickle of weights can contain.

/// A value on the machine's stack. Lists, tuples, dictionaries and tensors live in the [`Heap`]; a value says where.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// A text of the heap.
    Text(usize),
    /// A list of the heap.
    List(usize),
    /// A tuple of the heap.
    Tuple(usize),
    /// A dictionary of the heap, ordered or not.
    Dict(usize),
    /// A class or function.
    Global(Global),
    /// A storage of the heap.
    Storage(usize),
    /// A tensor of the heap.
    Tensor(usize),
    /// Something that weights do not need, such as a device.
    Other,
}

/// The classes and functions that weights need. Nothing is called: the machine knows what each of them makes of its
/// arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Size,
    /// A class of storages.
    Storage(StorageType),
    /// A class whose objects are only data, and of no use for weights.
    Data,
}

/// The element type of a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StorageType {
    Float,
    Half,
    BFloat16,
    Double,
    Long,
    Int,
    Short,
    Char,
    Byte,
    Bool,
}

impl StorageType {
    /// torch's name of the element type.
    pub(super) fn name(self) -> &'static str {
        match self {
            StorageType::Float => "float32",
            StorageType::Half => "float16",
            StorageType::BFloat16 => "bfloat16",
            StorageType::Double => "float64",
            StorageType::Long => "int64",
            StorageType::Int => "int32",
            StorageType::Short => "int16",
            StorageType::Char => "int8",
            StorageType::Byte => "uint8",
            StorageType::Bool => "bool",
        }
    }
}

impl Global {
    /// The global of this module and name, if it is one that weights need.
    pub(super) fn find(module: &str, name: &str) -> Option<Self> {
        let storage = |storage| Some(Global::Storage(storage));
        match (module, name) {
            ("collections", "OrderedDict") => Some(Global::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Global::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Global::RebuildParameter),
            ("torch", "Size") => Some(Global::Size),
            ("torch", "device") | ("argparse", "Namespace") => Some(Global::Data),
            ("torch", "FloatStorage") => storage(StorageType::Float),
            ("torch", "HalfStorage") => storage(StorageType::Half),
            ("torch", "BFloat16Storage") => storage(StorageType::BFloat16),
            ("torch", "DoubleStorage") => storage(StorageType::Double),
            ("torch", "LongStorage") => storage(StorageType::Long),
            ("torch", "IntStorage") => storage(StorageType::Int),
            ("torch", "ShortStorage") => storage(StorageType::Short),
            ("torch", "CharStorage") => storage(StorageType::Char),
            ("torch", "ByteStorage") => storage(StorageType::Byte),
            ("torch", "BoolStorage") => storage(StorageType::Bool),
            _ => None,
        }
    }
}

/// Values that belong together in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Storage {
    /// Its entry's name behind `data/`: a text of the heap.
    pub(super) key: usize,
    pub(super) kind: StorageType,
    /// Number of values.
    pub(super) len: usize,
}

/// A view of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    /// The storage's place in the heap.
    pub(super) storage: usize,
    /// The first value's place in the storage.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// The step between neighbours along each axis, in values.
    pub(super) strides: Vec<usize>,
}

/// Everything that values refer to. References are places in it: what a pickle nests in itself is never walked or dropped
/// recursively.
#[derive(Debug, Default)]
pub(super) struct Heap {
    pub(super) texts: Vec<String>,
    pub(super) lists: Vec<Vec<Value>>,
    pub(super) tuples: Vec<Vec<Value>>,
    pub(super) dicts: Vec<Vec<(Value, Value)>>,
    pub(super) storages: Vec<Storage>,
    pub(super) tensors: Vec<View>,
}

/// Puts `value` behind the others; returns its place.
pub(super) fn put<T>(values: &mut Vec<T>, value: T) -> usize {
    values.push(value);
    values.len() - 1
}
