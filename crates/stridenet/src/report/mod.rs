//! A run as one self-contained HTML page: curves, the network, confusions, samples and the resolved options.
//!
//! The page is built out of plain data and needs nothing else: no script, no network, no second file. It follows the
//! reader's light or dark mode, prints, and fits a phone. Every text that comes from outside (class names, options)
//! is escaped and pictures are embedded, so they cannot change the page or run in it; only [`Report::drawing`] is
//! markup already and inserted as it is.

pub mod chart;
mod confusion;
mod layers;
mod markup;
mod page;
mod samples;
mod ticks;
mod training;
#[cfg(test)]
pub(crate) mod well_formed;

/// Everything the page of one training run shows. A part that is empty or `None` is left out of the page.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The page's heading, for example `resnet20 on CIFAR-10`.
    pub title: String,
    /// Lines under the heading, for example the command and the date.
    pub subtitle: Vec<String>,
    /// The headline: how good the best model is. Without it, the best epoch's validation accuracy stands there.
    pub result: Option<Evaluation>,
    /// Further results as name and value, ready to read: parameters, MACs, wall time.
    pub facts: Vec<(String, String)>,
    /// One row an epoch, in order.
    pub epochs: Vec<EpochRow>,
    /// The [`EpochRow::epoch`] whose weights were kept as the best.
    pub best_epoch: Option<usize>,
    /// The network's layers in the order of the forward pass.
    pub layers: Vec<LayerRow>,
    /// An SVG document that draws the network, inserted as it is from its `<svg` on: it must be trusted and
    /// well-formed, and where it draws with `currentColor` it follows the page's light or dark mode.
    pub drawing: Option<String>,
    /// The classes' names; a class without one is shown by its number. Names may repeat, as ImageNet's do.
    pub labels: Vec<String>,
    /// How often each class was taken for each other.
    pub confusion: Option<Confusion>,
    /// A few images with what the best model says about them.
    pub samples: Vec<SamplePrediction>,
    /// The resolved options of the run as name and value.
    pub options: Vec<(String, String)>,
}

/// The best model's accuracy on the validation or test images.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evaluation {
    /// What was measured on, for example `validation` or `test`.
    pub split: String,
    /// The number of images.
    pub count: u64,
    /// Top-1 accuracy in percent.
    pub top1: f64,
    /// The 95 % Wilson interval of [`Self::top1`] in percent: low, high.
    pub top1_interval: [f64; 2],
    /// Top-5 accuracy in percent, when there are classes enough for it to mean something.
    pub top5: Option<f64>,
    /// Mean loss.
    pub loss: f64,
}

/// What one epoch measured. `None` means not measured; a number that is not finite means that it diverged and leaves
/// a gap in the curve.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EpochRow {
    /// The epoch's number, as the run counts them.
    pub epoch: usize,
    /// Mean training loss.
    pub train_loss: f64,
    /// Top-1 accuracy in percent on the (augmented) training images.
    pub train_top1: Option<f64>,
    /// Mean validation loss.
    pub val_loss: Option<f64>,
    /// Top-1 accuracy in percent on the validation images.
    pub val_top1: Option<f64>,
    /// Top-5 accuracy in percent on the validation images.
    pub val_top5: Option<f64>,
    /// Learning rate at the end of the epoch.
    pub lr: f64,
    /// Wall time of the epoch in seconds.
    pub seconds: f64,
    /// Training images a second.
    pub images_per_second: f64,
}

/// One layer of the network.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerRow {
    /// The torch name, for example `layer2.0.conv1`; its first part groups the layers into stages.
    pub name: String,
    /// What it is, for example `conv` or `batch norm`.
    pub kind: String,
    /// Input shape, ready to read, for example `32×32×16`.
    pub input: String,
    /// Output shape, ready to read.
    pub output: String,
    /// The side of the square kernel, where there is one.
    pub kernel: Option<usize>,
    /// The stride; 1 where the layer has none. Layers with more are highlighted.
    pub stride: usize,
    /// Trainable numbers.
    pub parameters: u64,
    /// Multiply-accumulates for one image.
    pub macs: u64,
    /// The side of the receptive field in input pixels; `None` where it is the whole image or means nothing.
    pub receptive_field: Option<usize>,
}

/// How often each class was taken for each other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Confusion {
    /// `counts[truth][predicted]`; a missing row or entry counts as zero.
    pub counts: Vec<Vec<u64>>,
}

/// An image with its true class and what the model says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SamplePrediction {
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// `[H, W, C]`, one byte a value. An image whose shape does not fit is replaced by a note that says so.
    pub pixels: Vec<u8>,
    /// The true class, an index into [`Report::labels`].
    pub truth: usize,
    /// Predicted classes with their probabilities (0 to 1), in any order; the three most probable are shown.
    pub predictions: Vec<(usize, f32)>,
}

impl Report {
    /// The whole page as one HTML document, also well-formed XML. The same report gives the same bytes.
    pub fn to_html(&self) -> String {
        page::page(self)
    }

    /// The measurements of the best epoch, when it is among the epochs.
    fn best_row(&self) -> Option<&EpochRow> {
        self.best_epoch.and_then(|best| self.epochs.iter().find(|row| row.epoch == best))
    }

    /// The name of a class, or its number where it has none.
    fn label(&self, class: usize) -> std::borrow::Cow<'_, str> {
        match self.labels.get(class) {
            Some(label) if !label.trim().is_empty() => label.into(),
            _ => format!("class {class}").into(),
        }
    }
}
