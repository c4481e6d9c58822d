//! What can go wrong between a file's graph and a network.

use std::path::PathBuf;
use thiserror::Error;

/// How many nodes a message names; a file can hold any number of them.
const LISTED: usize = 20;

/// A graph is not a network's, or a network cannot be written as one.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// Nodes that residual networks do not have.
    #[error(
        "{} holds {} that no residual network here has: {}; export a network of the forms named",
        path.display(), nodes_of(nodes.len()), list(nodes)
    )]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Every such node.
        nodes: Vec<Unsupported>,
    },
    /// A node does not fit those before it.
    #[error("{}: the node {node} ({operator}) {problem}; export the network for inference with torch.onnx.export", path.display())]
    Node {
        /// The file.
        path: PathBuf,
        /// The node's name.
        node: String,
        /// Its operator.
        operator: String,
        /// What was found and what was expected.
        problem: String,
    },
    /// The graph as a whole is not that of a classifier.
    #[error("{}: {problem}; export a whole image classifier for inference", path.display())]
    Graph {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
    },
    /// The graph is not a residual network, or another one than its description says.
    #[error(
        "{} is not the residual network {architecture}: at {found}, expected {expected}; the architecture of the file is \
         one that stridenet does not have, or not this one",
        path.display()
    )]
    Structure {
        /// The file.
        path: PathBuf,
        /// The network that the graph was compared with.
        architecture: String,
        /// The file's node, and what it computes.
        found: String,
        /// What the network has there.
        expected: String,
    },
    /// A constant cannot be used.
    #[error("{}: the constant {name} {problem}; export the file again", path.display())]
    Constant {
        /// The file.
        path: PathBuf,
        /// The constant, by its name in the file or the network.
        name: String,
        /// What was found and what was expected.
        problem: String,
    },
    /// The network cannot be written as a file, or what was written cannot be computed. Nothing was written.
    #[error("the network cannot be written as {}: {problem}; nothing was written", path.display())]
    Written {
        /// The file.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// What was written does not compute what the network computes. Nothing was written.
    #[error(
        "the network written as {} gives logits that differ from its own by {distance:e} (relative L2), expected at most \
         {tolerance:e}; nothing was written, please report the architecture",
        path.display()
    )]
    SelfCheck {
        /// The file.
        path: PathBuf,
        /// Relative L2 distance of the logits.
        distance: f64,
        /// The largest one allowed.
        tolerance: f64,
    },
}

/// A node that residual networks do not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// The node's name.
    pub node: String,
    /// Its operator, with what is special about it.
    pub operator: String,
    /// The nearest form that is supported.
    pub nearest: String,
}

fn nodes_of(number: usize) -> String {
    format!("{number} node{}", if number == 1 { "" } else { "s" })
}

fn list(nodes: &[Unsupported]) -> String {
    let mut shown: Vec<String> = nodes
        .iter()
        .take(LISTED)
        .map(|Unsupported { node, operator, nearest }| format!("{node} ({operator}, nearest is {nearest})"))
        .collect();
    if nodes.len() > LISTED {
        shown.push(format!("and {} more", nodes.len() - LISTED));
    }
    shown.join(", ")
}
