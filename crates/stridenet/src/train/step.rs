//! One step of gradient descent.

use super::{Sgd, SgdOptions};
use crate::Error;
use crate::kernels::{Context, loss};
use crate::layer::Workspace;
use crate::network::{Input, Network};

/// An optimizer and the memory that steps work in.
///
/// ```
/// use stridenet::arch::Arch;
/// use stridenet::bench::random_images;
/// use stridenet::kernels::Context;
/// use stridenet::network::{Initialise, Network};
/// use stridenet::train::{Descent, SgdOptions};
///
/// # fn main() -> Result<(), stridenet::Error> {
/// let cx = Context::detect();
/// let arch = Arch::preset("resnet20")?;
/// let mut network = Network::new(&arch, arch.img_size, cx.level(), Initialise::default())?;
/// let options = SgdOptions { momentum: 0.9, nesterov: false, weight_decay: 1e-4, decay_norm_and_bias: true };
/// let mut descent = Descent::new(&network, options);
/// let step = descent.step(&cx, &mut network, random_images([2, 32, 32, 3]), &[3, 8], 0.0, 0.1)?;
/// assert!(step.loss > 0.0 && step.correct <= 2);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Descent {
    pub(super) optimizer: Sgd,
    pub(super) workspace: Workspace,
}

/// What a step saw before it changed the network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Mean cross-entropy of the batch.
    pub loss: f64,
    /// Images whose label has the largest logit.
    pub correct: usize,
}

impl Descent {
    /// Stochastic gradient descent on `network`.
    pub fn new(network: &Network, options: SgdOptions) -> Self {
        Descent { optimizer: Sgd::new(network, options), workspace: Workspace::default() }
    }

    /// Takes a batch of images `[N, H, W, C]` and their labels through the network and back, and changes the parameters. A
    /// loss that is no finite number changes nothing but the running statistics.
    ///
    /// # Errors
    /// When the images' size or channels are not the network's.
    ///
    /// # Panics
    /// When there are more or fewer labels than images, or a label is not a class.
    pub fn step(
        &mut self,
        cx: &Context,
        network: &mut Network,
        input: impl Into<Input>,
        labels: &[usize],
        smoothing: f32,
        lr: f32,
    ) -> Result<Step, Error> {
        let Descent { optimizer, workspace } = self;
        let (logits, saved) = network.forward(cx, workspace, input)?;
        let classes = network.arch().num_classes;
        let mut gradient = workspace.tensor(logits.shape());
        let to = gradient.data_mut();
        let loss = loss::softmax_cross_entropy(cx, classes, logits.data(), labels, smoothing, to);
        let ranks = logits.data().chunks_exact(classes).zip(labels);
        let correct = ranks.filter(|(logits, label)| loss::rank(logits, **label) == 0).count();
        if loss.is_finite() {
            network.backward(cx, workspace, saved, &gradient);
            optimizer.step(cx, network, lr);
        }
        workspace.give(logits);
        workspace.give(gradient);
        Ok(Step { loss, correct })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Arch;
    use crate::bench::random_images;
    use crate::network::Initialise;

    fn descent() -> (Context, Network, Descent) {
        let cx = Context::detect();
        let arch = Arch::preset("resnet20").unwrap();
        let network = Network::new(&arch, arch.img_size, cx.level(), Initialise::default()).unwrap();
        let options =
            SgdOptions { momentum: 0.9, nesterov: true, weight_decay: 1e-4, decay_norm_and_bias: true };
        let descent = Descent::new(&network, options);
        (cx, network, descent)
    }

    #[test]
    fn steps_on_one_batch_learn_it() {
        let (cx, mut network, mut descent) = descent();
        let (images, labels) = (random_images([8, 32, 32, 3]), [0, 1, 2, 3, 4, 5, 6, 7]);
        let mut step = || descent.step(&cx, &mut network, images.clone(), &labels, 0.0, 0.05).unwrap();
        let first = step();
        let last = (0..15).map(|_| step()).last().unwrap();
        assert!(last.loss < first.loss / 2.0 && last.correct == 8, "{first:?} to {last:?}");
    }

    #[test]
    fn a_loss_that_is_no_number_changes_no_parameter() {
        let (cx, mut network, mut descent) = descent();
        let values = |network: &Network| -> Vec<f32> {
            network.parameters().flat_map(|parameter| parameter.value.clone()).collect()
        };
        let before = values(&network);
        let mut images = random_images([2, 32, 32, 3]);
        images.data_mut()[5] = f32::NAN;
        let step = descent.step(&cx, &mut network, images, &[0, 1], 0.0, 0.1).unwrap();
        assert!(step.loss.is_nan() && values(&network) == before, "{step:?}");
    }
}
