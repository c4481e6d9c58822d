//! The loop over epochs and steps. It tells an observer what happens and never prints.

use super::checkpoint::{Checkpoint, EpochRow, Progress};
use super::step::{Descent, Step};
use super::{RunFolder, Sgd, TrainError, TrainOptions};
use crate::data::{Batch, Dataset, Loader, LoaderOptions, TrainPass};
use crate::evaluate::{Evaluation, evaluate};
use crate::kernels::Context;
use crate::model::Model;
use crate::network::Input;
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
        let descent = Descent::new(model.network(), options.sgd());
        model.drop = options.drop_rates();
        Trainer { cx, model, options, train, val, folder, descent, progress: Progress::default() }
    }

    /// Goes on where `checkpoint` was written.
    ///
    /// # Errors
    /// When the checkpoint's tensors are not the network's.
    pub fn resume(&mut self, checkpoint: Checkpoint) -> Result<(), Error> {
        let path = self.folder.state_file();
        self.model.network_mut().load(self.cx, &path, checkpoint.state)?;
        let mut velocities = checkpoint.velocities;
        let parameters = self.model.network().parameters();
        let own: Option<Vec<Vec<f32>>> =
            parameters.map(|parameter| velocities.remove(&parameter.name)).collect();
        match own {
            Some(own) => {
                self.descent.optimizer = Sgd::resume(self.model.network(), self.options.sgd(), own);
            }
            None if checkpoint.progress == Progress::default() => {}
            None => {
                let reason = "a velocity is missing; start a new run".to_owned();
                return Err(TrainError::Resume { path, reason }.into());
            }
        }
        self.progress = checkpoint.progress;
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
    /// written; `best/` when the validation accuracy is the best so far.
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
            let Some(evaluation) = self.validate(&mut observe)? else { return self.stop(&mut observe) };
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

    fn save(&self) -> Result<(), Error> {
        self.model.save(&self.folder.last())?;
        let path = self.folder.state_file();
        Checkpoint::write(&path, self.model.network(), &self.descent.optimizer, &self.options, &self.progress)
    }

    /// The rest of the epoch's steps; returns the last learning rate, or nothing when the observer stopped it.
    fn train_epoch(&mut self, observe: &mut impl FnMut(&Event) -> Control) -> Result<Option<f32>, Error> {
        let epoch = self.progress.epoch;
        let first = self.progress.step;
        let pass = TrainPass {
            seed: self.options.seed,
            epoch: epoch as u64,
            augment: self.options.augment,
            // The last batch would have another size and other statistics; a data set of less than one batch has no other.
            drop_last: self.train.len() >= self.options.batch_size,
            first_batch: first,
        };
        let (dataset, preprocess) = (Arc::clone(&self.train), self.model.preprocess.clone());
        let mut loader = Loader::train(dataset, preprocess, self.loading(), pass)?;
        let steps = first + loader.remaining();
        let schedule = self.options.schedule(steps);
        let mut lr = schedule.at((epoch * steps + first).saturating_sub(1));
        let (start, before) = (Instant::now(), self.progress.sums.clone());
        while let Some(batch) = loader.next() {
            lr = schedule.at(epoch * steps + self.progress.step);
            let loss = self.step(batch?, lr)?;
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
            };
            if observe(&event) == Control::Stop {
                return Ok(None);
            }
        }
        Ok(Some(lr))
    }

    /// One step of gradient descent; returns the batch's mean loss.
    fn step(&mut self, batch: Batch, lr: f32) -> Result<f64, Error> {
        let Trainer { cx, model, options, descent, progress, .. } = self;
        let Batch { images, labels, indices } = batch;
        let drops =
            options.drop_rates().drops(model.network(), options.seed, progress.epoch as u64, &indices);
        let input = Input { images, drops };
        let smoothing = options.smoothing as f32;
        let Step { loss, correct } = descent.step(cx, model.network_mut(), input, &labels, smoothing, lr)?;
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
        let sums = &mut progress.sums;
        sums.images += labels.len();
        sums.loss += loss * labels.len() as f64;
        sums.correct += correct;
        Ok(loss)
    }

    /// Validation with the running statistics; nothing when the observer stopped it.
    fn validate(&mut self, observe: &mut impl FnMut(&Event) -> Control) -> Result<Option<Evaluation>, Error> {
        let (total, epoch) = (self.val.len(), self.progress.epoch + 1);
        let (dataset, preprocess) = (Arc::clone(&self.val), self.model.preprocess.clone());
        let loader = Loader::evaluate(dataset, preprocess, self.loading())?;
        let mut stopped = false;
        let Trainer { cx, model, descent: Descent { workspace, .. }, .. } = self;
        let network = model.network();
        let infer = |images: &Tensor, logits: &mut Tensor| {
            let inferred = network.infer(cx, workspace, images)?;
            logits.data_mut().copy_from_slice(inferred.data());
            workspace.give(inferred);
            Ok(())
        };
        let evaluation = evaluate(cx, network.arch().num_classes, loader, infer, |done| {
            stopped = observe(&Event::Validated { epoch, done, total }) == Control::Stop;
            !stopped
        })?;
        Ok((!stopped).then_some(evaluation))
    }

    /// Records the epoch and saves it.
    fn complete_epoch(&mut self, lr: f32, evaluation: &Evaluation) -> Result<Event, Error> {
        let sums = std::mem::take(&mut self.progress.sums);
        let images = sums.images.max(1) as f64;
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
            self.model.save(&self.folder.best())?;
        }
        self.save()?;
        self.folder.write_summary(&self.progress.rows)?;
        Ok(Event::Epoch { row, best })
    }
}
