//! What `predict` keeps of the way to the logits: feature maps and embeddings.

use crate::arguments::PredictFlags;
use crate::console::Console;
use crate::failure::Failure;
use anyhow::Context as _;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use stridenet::Tensor;
use stridenet::arch::Arch;
use stridenet::layer::Workspace;
use stridenet::model::Model;
use stridenet::network::Seen;
use stridenet::weights::{NamedTensor, StateDict, write_npy, write_safetensors};

/// Rows of one kind, image after image.
#[derive(Default)]
struct Rows {
    /// Of one image.
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// What is to be kept, and what has been so far.
pub(super) struct Keep {
    folder: Option<PathBuf>,
    embedding: Option<PathBuf>,
    /// Feature maps by number.
    maps: BTreeMap<usize, Rows>,
    embeddings: Rows,
    images: usize,
    workspace: Workspace,
}

impl Keep {
    /// What the flags ask for, if anything.
    pub(super) fn new(flags: &PredictFlags, arch: &Arch) -> Result<Option<Self>, Failure> {
        if flags.features.is_none() && flags.embedding.is_none() {
            return Ok(None);
        }
        let last = arch.stages.len();
        let wanted = match &flags.out_indices {
            Some(indices) => indices.clone(),
            None => (1..=last).collect(),
        };
        if let Some(index) = wanted.iter().find(|&&index| index > last) {
            let message =
                format!("--out-indices has {index}, expected 0 (the stem) to {last} (the last stage)");
            return Err(Failure::usage(message));
        }
        let kinds = ["npy", "safetensors"];
        if let Some(path) = &flags.embedding
            && !kinds.iter().any(|kind| path.extension().is_some_and(|found| found == *kind))
        {
            let message = format!(
                "--embedding is {}, expected a name that ends in .npy or .safetensors",
                path.display()
            );
            return Err(Failure::usage(message));
        }
        let maps = match &flags.features {
            Some(_) => wanted.into_iter().map(|index| (index, Rows::default())).collect(),
            None => BTreeMap::new(),
        };
        Ok(Some(Keep {
            folder: flags.features.clone(),
            embedding: flags.embedding.clone(),
            maps,
            embeddings: Rows::default(),
            images: 0,
            workspace: Workspace::default(),
        }))
    }

    /// The logits of images `[N, H, W, C]`; what is asked for is kept.
    pub(super) fn infer(&mut self, model: &Model, x: &Tensor) -> Result<Tensor, stridenet::Error> {
        let Keep { maps, embeddings, workspace, .. } = self;
        let see = |seen: Seen, output: &Tensor| {
            let [_, height, width, channels] = output.shape();
            let (rows, shape) = match seen {
                Seen::Feature(index) => (maps.get_mut(&index), vec![channels, height, width]),
                Seen::Embedding => (Some(&mut *embeddings), vec![channels]),
            };
            if let Some(rows) = rows {
                rows.shape = shape;
                rows.values.extend(output.to_nchw());
            }
        };
        let logits = model.network().infer_seeing(model.context(), workspace, x, see)?;
        self.images += x.batch();
        Ok(logits)
    }

    /// Writes stageK.npy `[N, C, H, W]` for each feature map, and the embeddings `[N, C]`.
    pub(super) fn write(&self, console: &Console) -> Result<(), Failure> {
        if self.images == 0 {
            return Ok(());
        }
        if let Some(folder) = &self.folder {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            for (index, rows) in &self.maps {
                self.array(console, &folder.join(format!("stage{index}.npy")), rows)?;
            }
        }
        match &self.embedding {
            Some(path) => self.array(console, path, &self.embeddings),
            None => Ok(()),
        }
    }

    fn array(&self, console: &Console, path: &Path, rows: &Rows) -> Result<(), Failure> {
        let shape: Vec<usize> = std::iter::once(self.images).chain(rows.shape.iter().copied()).collect();
        if path.extension().is_some_and(|kind| kind == "safetensors") {
            let mut state = StateDict::new();
            let (name, values) = ("embedding".to_owned(), rows.values.clone());
            state
                .insert(NamedTensor { name, shape: shape.clone(), values })
                .map_err(stridenet::Error::from)?;
            write_safetensors(path, &state, &BTreeMap::new()).map_err(stridenet::Error::from)?;
        } else {
            write_npy(path, &shape, &rows.values).map_err(stridenet::Error::from)?;
        }
        console.message(format_args!("wrote {} {shape:?}", path.display()));
        Ok(())
    }
}
