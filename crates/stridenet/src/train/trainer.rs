//! The loop over epochs and steps. It tells an observer what happens and never prints.

use super::checkpoint::{Checkpoint, EpochRow, Progress};
use super::step::{Descent, Step};
use super::{Amp, Optimizer, RunFolder, TrainError, TrainOptions, Update, WeightAverage};
use crate::data::{Batch, Dataset, Loader, LoaderOptions, TrainPass};
use crate::evaluate::{Evaluation, evaluate};
use crate::kernels::Context;
use crate::layer::{Parameter, Workspace};
use crate::model::Model;
use crate::network::Input;
use crate::plan::{Plan, PlanOptions};
use crate::weights::StateDict;
use crate::{Error, Tensor};
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

/// What the observer of a run wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    Continue,
    /// Save and end after this step.
    Stop,
}

/// What happens in a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A training step is done.
    Step {
        /// Epoch, counted from 1.
        epoch: usize,
        /// Steps done in the epoch.
        step: usize,
        /// Steps of an epoch.
        steps: usize,
        /// Mean loss of the batch.
        loss: f64,
        /// Learning rate of the step.
        lr: f32,
        /// Training images a second in this epoch.
        images_per_second: f64,
        /// Share of the epoch's time spent waiting for data.
        waiting: f64,
        /// Norm of the step's gradient before it was clipped, where gradients are.
        grad_norm: Option<f64>,
    },
    /// Some of the validation images are done.
    Validated {
        /// Epoch, counted from 1.
        epoch: usize,
        /// Images done.
        done: usize,
        /// Images in all.
        total: usize,
    },
    /// An epoch is complete and saved.
    Epoch {
        /// Its results.
        row: EpochRow,
        /// Whether it is the best so far.
        best: bool,
    },
    /// The run was stopped and saved before its end.
    Stopped {
        /// Epochs complete.
        epoch: usize,
        /// Steps done in the epoch that is not complete.
        step: usize,
    },
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// Results of the complete epochs.
    pub rows: Vec<EpochRow>,
    /// The best epoch, counted from 1.
    pub best_epoch: Option<usize>,
    /// Whether all epochs are done.
    pub complete: bool,
}

/// What a step came to.
struct Taken {
    /// Mean loss of its images.
    loss: f64,
    grad_norm: Option<f64>,
}

/// A run: a model, its data, its options and its folder.
#[derive(Debug)]
pub struct Trainer<'a> {
    cx: &'a Context,
    /// The model, which training changes.
    pub model: Model,
    options: TrainOptions,
    train: Arc<Dataset>,
    val: Arc<Dataset>,
    folder: RunFolder,
    descent: Descent,
    progress: Progress,
}

impl<'a> Trainer<'a> {
    /// A run that has not begun.
    pub fn new(
        cx: &'a Context,
        mut model: Model,
        options: TrainOptions,
        [train, val]: [Arc<Dataset>; 2],
        folder: RunFolder,
    ) -> Self {
        let descent = Descent::new(model.network(), options.optimizer());
        model.drop = options.drop_rates();
        model.network_mut().set_operands(Amp::operands(options.amp));
        model.network_mut().set_recompute(options.recompute);
        Trainer { cx, model, options, train, val, folder, descent, progress: Progress::default() }
    }

    /// Goes on where `checkpoint` was written.
    ///
    /// # Errors
    /// When the checkpoint's tensors are not the network's.
    pub fn resume(&mut self, checkpoint: Checkpoint) -> Result<(), Error> {
        let Checkpoint { state, average, mut optimizer, progress, .. } = checkpoint;
        let (path, options, cx) = (self.folder.state_file(), self.options.optimizer(), self.cx);
        let missing = |what: &str| {
            let reason = format!("{what} is missing or has another shape; start a new run");
            Error::from(TrainError::Resume { path: path.clone(), reason })
        };
        let network = self.model.network_mut();
        if let Some(decay) = options.ema_decay {
            network.load(cx, &path, average.ok_or_else(|| missing("the average of the weights"))?)?;
            self.descent.average = Some(WeightAverage::of(network, decay, progress.updates));
        }
        network.load(cx, &path, state)?;
        // A run that was stopped before its first step has nothing to remember.
        if progress != Progress::default() {
            let take =
                |state: &str, parameter: &Parameter| optimizer.remove(&format!("{state}.{}", parameter.name));
            let resumed = Optimizer::resume(network, options, progress.updates, take);
            self.descent.optimizer = resumed.map_err(|state| missing(&state))?;
        }
        self.progress = progress;
        Ok(())
    }

    /// The options of the run.
    pub fn options(&self) -> &TrainOptions {
        &self.options
    }

    /// The images of the validation.
    pub fn validation(&self) -> &Arc<Dataset> {
        &self.val
    }

    /// Trains to the end, or until the observer says stop. After each epoch, and when stopped, `last/` and `state/` are
    /// written; `best/` when the validation accuracy is the best so far. Where a moving average of the weights is kept, it is
    /// what is validated and written to `last/` and `best/`.
    ///
    /// # Errors
    /// When the options cannot be followed, the loss is no longer a number, data cannot be had, or a file cannot be written.
    /// What was saved before stays.
    pub fn run(&mut self, mut observe: impl FnMut(&Event) -> Control) -> Result<Finished, Error> {
        self.options.check_network(self.model.network().arch())?;
        while self.progress.epoch < self.options.epochs {
            let lr = match self.train_epoch(&mut observe)? {
                Some(lr) => lr,
                None => return self.stop(&mut observe),
            };
            let Some(evaluation) = self.averaged(|run| run.validate(&mut observe))? else {
                return self.stop(&mut observe);
            };
            let event = self.complete_epoch(lr, &evaluation)?;
            self.folder.append_event(&event)?;
            if observe(&event) == Control::Stop && self.progress.epoch < self.options.epochs {
                break;
            }
        }
        Ok(self.finished())
    }

    fn loading(&self) -> LoaderOptions {
        LoaderOptions { batch_size: self.options.batch_size, workers: self.options.workers }
    }

    fn finished(&self) -> Finished {
        let Progress { rows, best_epoch, epoch, .. } = self.progress.clone();
        Finished { rows, best_epoch, complete: epoch >= self.options.epochs }
    }

    fn stop(&mut self, observe: &mut impl FnMut(&Event) -> Control) -> Result<Finished, Error> {
        self.check_finite()?;
        self.save()?;
        let event = Event::Stopped { epoch: self.progress.epoch, step: self.progress.step };
        self.folder.append_event(&event)?;
        observe(&event);
        Ok(self.finished())
    }

    /// A checkpoint with values that are no numbers could not be read again.
    fn check_finite(&self) -> Result<(), Error> {
        let mut parameters = self.model.network().parameters();
        match parameters.find(|parameter| parameter.value.iter().any(|value| !value.is_finite())) {
            None => Ok(()),
            Some(parameter) => Err(TrainError::Overflowed {
                parameter: parameter.name.clone(),
                epoch: self.progress.epoch + 1,
                kept: self.folder.kept(),
            }
            .into()),
        }
    }

    /// Gives the network the average of its weights where there is one, or takes it away again.
    fn exchange(&mut self) {
        if let Some(average) = &mut self.descent.average {
            average.exchange(self.model.network_mut());
        }
    }

    /// Runs `work` while the network has the average of its weights.
    fn averaged<R>(&mut self, work: impl FnOnce(&mut Self) -> Result<R, Error>) -> Result<R, Error> {
        self.exchange();
        let result = work(self);
        self.exchange();
        result
    }

    fn save(&mut self) -> Result<(), Error> {
        let average: Option<StateDict> = self.averaged(|run| {
            run.model.save(&run.folder.last())?;
            run.descent.average.is_some().then(|| run.model.network().state()).transpose()
        })?;
        let path = self.folder.state_file();
        let Trainer { model, descent, options, progress, .. } = self;
        Checkpoint::write(&path, model.network(), average.as_ref(), &descent.optimizer, (options, progress))
    }

    /// The rest of the epoch's steps; returns the last learning rate, or nothing when the observer stopped it.
    fn train_epoch(&mut self, observe: &mut impl FnMut(&Event) -> Control) -> Result<Option<f32>, Error> {
        let epoch = self.progress.epoch;
        let first = self.progress.step;
        let TrainOptions { seed, augment, batch_size, .. } = self.options;
        // The last batch would have another size and other statistics; a data set of less than one batch has no other.
        let drop_last = self.train.len() >= batch_size;
        let batches = if drop_last { self.train.len() / batch_size } else { 1 };
        let group = self.options.grad_accum_steps.min(batches);
        let steps = batches / group;
        let pass = TrainPass { seed, epoch: epoch as u64, augment, drop_last, first_batch: first * group };
        let (dataset, preprocess) = (Arc::clone(&self.train), self.model.preprocess.clone());
        let mut loader = Loader::train(self.model.context(), dataset, preprocess, self.loading(), pass)?;
        let schedule = self.options.schedule(steps);
        let mut lr = schedule.at((epoch * steps + first).saturating_sub(1));
        let (start, before) = (Instant::now(), self.progress.sums.clone());
        for step in first..steps {
            lr = schedule.at(epoch * steps + step);
            let Taken { loss, grad_norm } = self.step(&mut loader, group, lr)?;
            self.progress.step += 1;
            let sums = &mut self.progress.sums;
            sums.seconds = before.seconds + start.elapsed().as_secs_f64();
            sums.waited = before.waited + loader.waited().as_secs_f64();
            let event = Event::Step {
                epoch: epoch + 1,
                step: self.progress.step,
                steps,
                loss,
                lr,
                images_per_second: sums.images as f64 / sums.seconds.max(1e-9),
                waiting: sums.waited / sums.seconds.max(1e-9),
                grad_norm,
            };
            if observe(&event) == Control::Stop {
                return Ok(None);
            }
        }
        Ok(Some(lr))
    }

    /// One step of gradient descent over `group` batches.
    fn step(&mut self, loader: &mut Loader, group: usize, lr: f32) -> Result<Taken, Error> {
        let Trainer { cx, model, options, descent, progress, .. } = self;
        let (smoothing, rates) = (options.smoothing as f32, options.drop_rates());
        let mut losses = 0.0;
        for _ in 0..group {
            let Some(batch) = loader.next() else { break };
            let Batch { images, labels, indices } = batch?;
            let drops = rates.drops(model.network(), options.seed, progress.epoch as u64, &indices);
            let input = Input { images, drops };
            let Step { loss, correct } =
                descent.accumulate(cx, model.network_mut(), input, &labels, smoothing)?;
            descent.take_images().into_iter().for_each(|images| loader.give_back(images));
            if !loss.is_finite() {
                return Err(TrainError::Diverged {
                    loss,
                    epoch: progress.epoch + 1,
                    step: progress.step + 1,
                    lr,
                    kept: self.folder.kept(),
                }
                .into());
            }
            losses += loss;
            let sums = &mut progress.sums;
            sums.images += labels.len();
            sums.loss += loss * labels.len() as f64;
            sums.correct += correct;
        }
        let Update { grad_norm } = descent.update(cx, model.network_mut(), lr);
        progress.updates = descent.optimizer.steps();
        if let (Some(norm), Some(clip)) = (grad_norm, options.clip_grad) {
            progress.sums.grad_norms += norm;
            progress.sums.clipped += usize::from(norm > clip);
        }
        Ok(Taken { loss: losses / group as f64, grad_norm })
    }

    /// Validation with the running statistics, by a plan, as the trained model will be run; nothing when the observer stopped it.
    fn validate(&mut self, observe: &mut impl FnMut(&Event) -> Control) -> Result<Option<Evaluation>, Error> {
        let (total, epoch) = (self.val.len(), self.progress.epoch + 1);
        let (dataset, preprocess) = (Arc::clone(&self.val), self.model.preprocess.clone());
        let loader = Loader::evaluate(self.model.context(), dataset, preprocess, self.loading())?;
        // The plan's weights and buffers take the place of a step's, so that an epoch needs no more memory than its steps.
        self.descent.workspace = Workspace::default();
        let Trainer { cx, model, options, .. } = self;
        let (batch, context) = (options.batch_size.min(total), Arc::clone(model.context()));
        let plan = Plan::compile(model.network(), PlanOptions { batch, context, tuning: None })?;
        let infer = |images: &Tensor, logits: &mut Tensor| plan.run(images, logits);
        let mut stopped = false;
        let evaluation = evaluate(cx, plan.classes(), loader, infer, |done| {
            stopped = observe(&Event::Validated { epoch, done, total }) == Control::Stop;
            !stopped
        })?;
        Ok((!stopped).then_some(evaluation))
    }

    /// Records the epoch and saves it.
    fn complete_epoch(&mut self, lr: f32, evaluation: &Evaluation) -> Result<Event, Error> {
        let sums = std::mem::take(&mut self.progress.sums);
        let (images, steps) = (sums.images.max(1) as f64, self.progress.step.max(1) as f64);
        let row = EpochRow {
            epoch: self.progress.epoch + 1,
            train_loss: sums.loss / images,
            train_top1: 100.0 * sums.correct as f64 / images,
            val_loss: evaluation.loss,
            val_top1: evaluation.top1,
            val_top5: evaluation.top5,
            lr: f64::from(lr),
            seconds: sums.seconds,
            images_per_second: sums.images as f64 / sums.seconds.max(1e-9),
            waited_seconds: sums.waited,
            grad_norm: self.options.clip_grad.map(|_| sums.grad_norms / steps),
            clipped: self.options.clip_grad.map(|_| 100.0 * sums.clipped as f64 / steps),
        };
        if !evaluation.loss.is_finite() {
            return Err(TrainError::Diverged {
                loss: evaluation.loss,
                epoch: row.epoch,
                step: self.progress.step,
                lr,
                kept: self.folder.kept(),
            }
            .into());
        }
        self.check_finite()?;
        let record = |epoch: usize| self.progress.rows[epoch - 1].val_top1;
        let best = self.progress.best_epoch.is_none_or(|epoch| row.val_top1 > record(epoch));
        if best {
            self.progress.best_epoch = Some(row.epoch);
        }
        self.progress.rows.push(row.clone());
        (self.progress.epoch, self.progress.step) = (row.epoch, 0);
        // `best/` first: if the disk fills up in between, the state still says that the epoch is to be done again.
        if best {
            self.averaged(|run| run.model.save(&run.folder.best()))?;
        }
        self.save()?;
        self.folder.write_summary(&self.progress.rows)?;
        Ok(Event::Epoch { row, best })
    }
}
