//! Which operators a graph may have, with which attributes, and what comes nearest to others.

use crate::exchange::error::Unsupported;
use crate::spelling::edit_distance;
use crate::weights::onnx::{Attribute, Node};
use crate::weights::printable;

/// Operators on activations, with the attributes that are understood. `momentum` says nothing about inference,
/// `storage_order` and `seed` nothing about the results that are used.
const OPERATORS: &[(&str, &[&str])] = &[
    ("Add", &[]),
    (
        "AveragePool",
        &["auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides"],
    ),
    ("BatchNormalization", &["epsilon", "momentum", "spatial", "training_mode"]),
    ("Cast", &["saturate", "to"]),
    ("CastLike", &["saturate"]),
    ("Conv", &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"]),
    ("Dropout", &["ratio", "seed"]),
    ("Expand", &[]),
    ("Flatten", &["axis"]),
    ("Gemm", &["alpha", "beta", "transA", "transB"]),
    ("GlobalAveragePool", &[]),
    ("Identity", &[]),
    ("MatMul", &[]),
    ("MaxPool", &["auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "storage_order", "strides"]),
    ("Mul", &[]),
    ("Pad", &["mode", "pads", "value"]),
    ("ReduceMean", &["axes", "keepdims", "noop_with_empty_axes"]),
    ("Relu", &[]),
    ("Reshape", &["allowzero"]),
    ("Sigmoid", &[]),
    ("Slice", &["axes", "ends", "starts"]),
    ("Squeeze", &["axes"]),
    ("Unsqueeze", &["axes"]),
];

/// Operators on constants, which exporters compute sizes with.
const ON_CONSTANTS: &[&str] = &[
    "Add",
    "Cast",
    "CastLike",
    "Ceil",
    "Clip",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Div",
    "Dropout",
    "Expand",
    "Floor",
    "Gather",
    "Identity",
    "Mul",
    "Reshape",
    "Shape",
    "Slice",
    "Squeeze",
    "Sub",
    "Transpose",
    "Unsqueeze",
];

/// Operators that other networks have, with the form that plays their part in these.
const NEAREST: &[(&[&str], &str)] = &[
    (
        &[
            "Celu",
            "Clip",
            "Elu",
            "Erf",
            "Gelu",
            "HardSwish",
            "LeakyRelu",
            "Mish",
            "PRelu",
            "Selu",
            "Softplus",
            "Swish",
            "Tanh",
        ],
        "Relu",
    ),
    (
        &["HardSigmoid", "Softmax", "LogSoftmax"],
        "Sigmoid in a squeeze-and-excitation gate, and logits as the output",
    ),
    (
        &[
            "GroupNormalization",
            "InstanceNormalization",
            "LayerNormalization",
            "LpNormalization",
            "LRN",
            "MeanVarianceNormalization",
        ],
        "BatchNormalization with running statistics",
    ),
    (&["ConvInteger", "ConvTranspose", "DeformConv", "QLinearConv"], "Conv in floating point"),
    (
        &["DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul", "QuantizeLinear"],
        "the float graph before quantising",
    ),
    (&["GlobalLpPool", "GlobalMaxPool", "ReduceMax", "ReduceSum"], "GlobalAveragePool"),
    (&["LpPool", "Resize", "Upsample"], "AveragePool or MaxPool"),
    (&["Div", "Sub"], "normalisation of the images outside the graph"),
    (&["If", "Loop", "Scan"], "a graph without branches"),
];

/// What is wrong with a node that has an operator, attribute or mode that is not understood; `constant` says whether it
/// computes with constants alone.
pub(super) fn unsupported(node: &Node, constant: bool) -> Option<Unsupported> {
    if constant && ON_CONSTANTS.binary_search(&node.operator.as_str()).is_ok() {
        return None;
    }
    let refuse = |operator: String, nearest: &str| {
        Some(Unsupported { node: node.label(), operator, nearest: nearest.to_owned() })
    };
    let operator = node.operator.as_str();
    let Ok(place) = OPERATORS.binary_search_by_key(&operator, |&(name, _)| name) else {
        return refuse(printable(operator), nearest(operator));
    };
    let (_, known) = OPERATORS[place];
    let usual: String = known.join(", ");
    for (name, value) in &node.attributes {
        let shown = || format!("{operator} with {}", describe(name, value));
        if !known.contains(&name.as_str()) {
            let nearest =
                if known.is_empty() { operator.to_owned() } else { format!("{operator} with {usual}") };
            return refuse(shown(), &nearest);
        }
        let required = REQUIRED.iter().find(|(of, attribute, _)| of.contains(&operator) && attribute == name);
        if let Some((_, attribute, allowed)) = required
            && !allowed.iter().any(|allowed| allowed.is(value))
        {
            return refuse(shown(), &format!("{operator} with {attribute} {}", allowed[0]));
        }
    }
    None
}

/// The form that comes nearest to an operator.
fn nearest(operator: &str) -> &'static str {
    let name = operator.rsplit("::").next().unwrap_or(operator);
    if let Some((_, nearest)) = NEAREST.iter().find(|(names, _)| names.contains(&name)) {
        return nearest;
    }
    let distance = |known: &str| edit_distance(&name.to_lowercase(), &known.to_lowercase());
    let short = name.len() <= 100;
    let alike =
        OPERATORS.iter().map(|&(known, _)| (if short { distance(known) } else { usize::MAX }, known)).min();
    match alike {
        Some((distance, known)) if distance * 2 <= name.len() => known,
        _ => "Conv, BatchNormalization, Relu, pools, Add and Gemm",
    }
}

/// A value that an attribute may have.
enum Allowed {
    Int(i64),
    Float(f32),
    Text(&'static str),
    /// A list of nothing but this.
    All(i64),
}

/// Attributes that may only have some values; the first one is named in messages.
const REQUIRED: &[(&[&str], &str, &[Allowed])] = &[
    (&["AveragePool", "Conv", "MaxPool"], "auto_pad", &[Allowed::Text("NOTSET"), Allowed::Text("VALID")]),
    (&["AveragePool", "MaxPool"], "dilations", &[Allowed::All(1)]),
    (&["BatchNormalization"], "training_mode", &[Allowed::Int(0)]),
    (&["BatchNormalization"], "spatial", &[Allowed::Int(1)]),
    (&["Gemm"], "alpha", &[Allowed::Float(1.0)]),
    (&["Gemm"], "beta", &[Allowed::Float(1.0)]),
    (&["Gemm"], "transA", &[Allowed::Int(0)]),
    (&["Flatten"], "axis", &[Allowed::Int(1)]),
    (&["MaxPool"], "ceil_mode", &[Allowed::Int(0)]),
    (
        &["Cast"],
        "to",
        &[
            Allowed::Int(1),
            Allowed::Int(7),
            Allowed::Int(6),
            Allowed::Int(10),
            Allowed::Int(11),
            Allowed::Int(16),
        ],
    ),
    (&["Pad"], "mode", &[Allowed::Text("constant"), Allowed::Text("reflect")]),
];

impl Allowed {
    fn is(&self, value: &Attribute) -> bool {
        match (self, value) {
            (Allowed::Int(allowed), Attribute::Int(value)) => allowed == value,
            (Allowed::Float(allowed), Attribute::Float(value)) => allowed == value,
            (Allowed::Text(allowed), Attribute::Text(value)) => allowed == value,
            (Allowed::All(allowed), Attribute::Ints(values)) => values.iter().all(|value| allowed == value),
            _ => false,
        }
    }
}

impl std::fmt::Display for Allowed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Allowed::Int(value) | Allowed::All(value) => write!(f, "{value}"),
            Allowed::Float(value) => write!(f, "{value}"),
            Allowed::Text(value) => f.write_str(value),
        }
    }
}

fn describe(name: &str, value: &Attribute) -> String {
    let value = match value {
        Attribute::Float(value) => value.to_string(),
        Attribute::Int(value) => value.to_string(),
        Attribute::Text(value) => value.clone(),
        Attribute::Ints(values) => format!("{:?}", &values[..values.len().min(8)]),
        Attribute::Floats(_) | Attribute::Tensor(_) | Attribute::Other => String::new(),
    };
    printable(format!("{name} {value}").trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(operator: &str, attributes: &[(&str, Attribute<'static>)]) -> Node<'static> {
        let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        Node { name: "n".into(), operator: operator.into(), attributes, ..Node::default() }
    }

    #[test]
    fn the_table_is_sorted_for_the_search() {
        assert!(OPERATORS.is_sorted_by_key(|&(name, _)| name) && ON_CONSTANTS.is_sorted());
        for (of, attribute, _) in REQUIRED {
            for operator in *of {
                let known = OPERATORS.iter().find(|(name, _)| name == operator);
                assert!(known.is_some_and(|(_, attributes)| attributes.contains(attribute)), "{operator}");
            }
        }
    }

    #[test]
    fn other_operators_are_named_with_the_nearest_form() {
        for (operator, expected) in [
            ("HardSwish", "Relu"),
            ("LayerNormalization", "BatchNormalization with running statistics"),
            ("QLinearConv", "Conv in floating point"),
            ("com.microsoft::Gelu", "Relu"),
            ("GlobalMaxPool", "GlobalAveragePool"),
            ("ReduceMeen", "ReduceMean"),
            ("Attention", "Conv, BatchNormalization, Relu, pools, Add and Gemm"),
        ] {
            let found = unsupported(&node(operator, &[]), false).unwrap();
            assert_eq!((found.operator.as_str(), found.nearest.as_str()), (operator, expected));
        }
        assert_eq!(unsupported(&node("Relu", &[]), false), None);
        // Sizes are clipped, activations are not.
        assert_eq!(unsupported(&node("Clip", &[]), true), None);
        assert_eq!(unsupported(&node("Clip", &[]), false).unwrap().nearest, "Relu");
    }

    #[test]
    fn attributes_and_their_values_are_checked() {
        let pads = ("pads", Attribute::Ints(vec![1; 4]));
        assert_eq!(unsupported(&node("Conv", std::slice::from_ref(&pads)), false), None);
        let same = node("Conv", &[pads, ("auto_pad", Attribute::Text("SAME_UPPER".into()))]);
        let found = unsupported(&same, false).unwrap();
        assert_eq!(found.operator, "Conv with auto_pad SAME_UPPER");
        assert_eq!(found.nearest, "Conv with auto_pad NOTSET");
        let found = unsupported(&node("MaxPool", &[("ceil_mode", Attribute::Int(1))]), false).unwrap();
        assert_eq!(found.nearest, "MaxPool with ceil_mode 0");
        let found = unsupported(&node("Relu", &[("alpha", Attribute::Float(0.1))]), false).unwrap();
        assert_eq!((found.operator.as_str(), found.nearest.as_str()), ("Relu with alpha 0.1", "Relu"));
        assert!(
            unsupported(&node("MaxPool", &[("dilations", Attribute::Ints(vec![1, 2]))]), false).is_some()
        );
    }
}
