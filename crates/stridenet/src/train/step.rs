//! One step of gradient descent.

use super::optimizer::{Optimizer, OptimizerOptions, Spread, Update, WeightAverage};
use crate::kernels::{Context, loss, optimizer as kernel};
use crate::layer::Workspace;
use crate::network::{Input, Network};
use crate::{Error, Tensor};

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
    pub(super) optimizer: Optimizer,
    pub(super) workspace: Workspace,
    /// The moving average of the weights, where there is one.
    pub(super) average: Option<WeightAverage>,
    gradients: Gradients,
    /// The images of the last step.
    images: Option<Tensor>,
}

/// Gradients of several batches.
#[derive(Debug, Default)]
struct Gradients {
    /// Batches since the last update.
    batches: usize,
    /// With several of them, the sums over all before the last one: a vector for each parameter, laid out as its value. The
    /// second list stays empty.
    sums: [Vec<Vec<f32>>; 2],
    spread: Spread,
}

impl Gradients {
    /// Puts the gradients that the network holds aside, before a backward pass overwrites them.
    fn save(&mut self, network: &mut Network) {
        let sums = &mut self.sums[0];
        sums.resize_with(network.parameters().count(), Vec::new);
        for (parameter, sum) in network.parameters_mut().zip(sums) {
            std::mem::swap(&mut parameter.grad, sum);
        }
    }

    /// Adds what was put aside.
    fn add(&mut self, cx: &Context, network: &mut Network) {
        let mut pieces = self.spread.over(network, &mut self.sums);
        cx.pool().pieces(&mut pieces, 1, |_, piece| {
            kernel::add(cx.level(), piece[0].states[0], piece[0].grad);
        });
        self.spread.keep(pieces);
    }
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
    /// Descent on `network`.
    pub fn new(network: &Network, options: impl Into<OptimizerOptions>) -> Self {
        let options = options.into();
        Descent {
            optimizer: Optimizer::new(network, options),
            workspace: Workspace::default(),
            average: options.ema_decay.map(|decay| WeightAverage::of(network, decay, 0)),
            gradients: Gradients::default(),
            images: None,
        }
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
        let step = self.accumulate(cx, network, input, labels, smoothing)?;
        if step.loss.is_finite() {
            self.update(cx, network, lr);
        }
        Ok(step)
    }

    /// The first half of a step, which can be taken several times before [`update`](Self::update): takes a batch through the
    /// network and back, and adds its gradient to those of the batches before. Running statistics move with each batch. A loss
    /// that is no finite number adds nothing.
    ///
    /// # Errors
    /// When the images' size or channels are not the network's.
    ///
    /// # Panics
    /// When there are more or fewer labels than images, or a label is not a class.
    pub fn accumulate(
        &mut self,
        cx: &Context,
        network: &mut Network,
        input: impl Into<Input>,
        labels: &[usize],
        smoothing: f32,
    ) -> Result<Step, Error> {
        let Descent { workspace, gradients, .. } = self;
        let (logits, saved) = network.forward(cx, workspace, input)?;
        let classes = network.arch().num_classes;
        let mut gradient = workspace.tensor(logits.shape());
        let to = gradient.data_mut();
        let loss = loss::softmax_cross_entropy(cx, classes, logits.data(), labels, smoothing, to);
        let ranks = logits.data().chunks_exact(classes).zip(labels);
        let correct = ranks.filter(|(logits, label)| loss::rank(logits, **label) == 0).count();
        if loss.is_finite() {
            let several = gradients.batches > 0;
            if several {
                gradients.save(network);
            }
            self.images = Some(network.backward(cx, workspace, saved, &gradient));
            if several {
                gradients.add(cx, network);
            }
            gradients.batches += 1;
        }
        workspace.give(logits);
        workspace.give(gradient);
        Ok(Step { loss, correct })
    }

    /// The second half of a step: changes the parameters by the mean gradient of the batches since the last update, and moves
    /// the average of the weights. Without a batch, nothing happens.
    pub fn update(&mut self, cx: &Context, network: &mut Network, lr: f32) -> Update {
        let batches = std::mem::take(&mut self.gradients.batches);
        if batches == 0 {
            return Update { grad_norm: None };
        }
        let update = self.optimizer.step(cx, network, 1.0 / batches as f32, lr);
        if let Some(average) = &mut self.average {
            average.update(cx, network);
        }
        update
    }

    /// The images of the last batch: memory that the next one can be written to.
    pub fn take_images(&mut self) -> Option<Tensor> {
        self.images.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Arch;
    use crate::bench::random_images;
    use crate::network::Initialise;
    use crate::train::SgdOptions;

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

    #[test]
    fn the_mean_gradient_of_batches_makes_a_step() {
        let (cx, mut network, mut descent) = descent();
        let batches = [(random_images([2, 32, 32, 3]), [1, 7]), (random_images([2, 32, 32, 3]), [2, 0])];
        let gradients = |network: &Network| -> Vec<f32> {
            network.parameters().flat_map(|parameter| parameter.grad.clone()).collect()
        };
        let mut alone = batches.clone().map(|(images, labels)| {
            descent.gradients.batches = 0;
            descent.accumulate(&cx, &mut network, images, &labels, 0.0).unwrap();
            gradients(&network)
        });
        descent.gradients.batches = 0;
        for (images, labels) in batches.clone().into_iter().chain(batches) {
            descent.accumulate(&cx, &mut network, images, &labels, 0.0).unwrap();
        }
        let [first, second] = &mut alone;
        let sums = first.iter().zip(second).map(|(first, second)| *first + *second + *first + *second);
        assert!(gradients(&network) == sums.collect::<Vec<_>>(), "added in the batches' order");
        let steps = network.parameters().map(|parameter| (parameter.value.clone(), parameter.grad.clone()));
        let before: Vec<_> = steps.collect();
        descent.optimizer = Optimizer::new(
            &network,
            SgdOptions { momentum: 0.0, nesterov: false, weight_decay: 0.0, decay_norm_and_bias: true }
                .into(),
        );
        descent.update(&cx, &mut network, 0.5);
        for (parameter, (value, grad)) in network.parameters().zip(before) {
            let moved = value.iter().zip(&grad).map(|(value, grad)| value - 0.5 * (0.25 * grad));
            assert!(parameter.value == moved.collect::<Vec<_>>(), "{}", parameter.name);
        }
        assert_eq!(descent.update(&cx, &mut network, 0.5).grad_norm, None);
    }
}
