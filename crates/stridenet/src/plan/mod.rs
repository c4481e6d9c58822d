//! A network compiled for inference: a closed list of steps for one image size and a largest batch.
//!
//! Batch norms are folded into the convolutions; bias, residual and ReLU happen while a convolution's result is still in
//! registers; weights are packed in the one form that the chosen algorithm wants; activations live in buffers that are
//! laid out once, so that a run allocates nothing. Early stages, whose activations are large, take a few images at a time
//! through all their layers on one thread; late stages, whose weights are large, take the whole batch through one layer
//! after the other on all threads.
//!
//! The bits of a result depend on the plan and the image alone: not on the number of threads, and not on the batch that
//! the image is a part of. Which algorithms a plan uses is estimated from shapes, batch, instruction-set level and kind of core; a
//! [`Tuning`] has measured them on this machine instead. Algorithms differ in their last bits, so that plans with different
//! tunings may too; and as a tuning is measured for one number of threads, it is what makes bits depend on how many are asked
//! for. Without tunings they never do.
//!
//! ```
//! use stridenet::arch::Arch;
//! use stridenet::kernels::Level;
//! use stridenet::network::{Initialise, Network};
//! use stridenet::plan::{Plan, PlanOptions};
//! use stridenet::Tensor;
//!
//! # fn main() -> Result<(), stridenet::Error> {
//! let arch = Arch::preset("resnet20")?;
//! let network = Network::new(&arch, arch.img_size, Level::detect(), Initialise::default())?;
//! let plan = Plan::compile(&network, PlanOptions { batch: 4, ..PlanOptions::default() })?;
//! let mut logits = Tensor::zeros([3, 1, 1, 10]);
//! plan.run(&Tensor::zeros([3, 32, 32, 3]), &mut logits)?;
//! # Ok(())
//! # }
//! ```

mod compile;
mod fold;
mod kernel;
mod places;
mod profile;
mod segment;
#[cfg(test)]
mod tests;
mod tune;

pub use crate::algorithm::Choice;
pub use tune::{Conditions, TuneError, Tuning};

use self::compile::Compiler;
use self::profile::Profile;
use self::segment::{Local, Segment};
use crate::algorithm::Chooser;
use crate::arch::Arch;
use crate::kernels::{Aligned, Context, Level, Space, with_free};
use crate::layer::{BatchNorm, Block, Linear, Unit};
use crate::network::{Layers, Network};
use crate::{Error, ShapeError, Tensor};
use serde::Serialize;
use std::borrow::Borrow;
use std::fmt::Arguments;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How a plan is compiled.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    /// The largest batch that the plan will run.
    pub batch: usize,
    /// The instruction-set level, which must be the network's, and the threads of [`Plan::run`].
    pub context: Arc<Context>,
    /// Algorithms that were measured, for this network, batch, context and machine; without them they are estimated.
    pub tuning: Option<Arc<Tuning>>,
}

impl Default for PlanOptions {
    /// One image at a time, with the best instructions and all physical processors.
    fn default() -> Self {
        PlanOptions { batch: 1, context: Arc::new(Context::detect()), tuning: None }
    }
}

impl PlanOptions {
    /// Refuses a tuning that was measured for something else.
    fn check(&self, network: &Network) -> Result<(), Error> {
        assert_eq!(network.level(), self.context.level(), "the network's instruction-set level");
        match &self.tuning {
            Some(tuning) => Ok(tuning.check(network, self.batch, &self.context)?),
            None => Ok(()),
        }
    }
}

/// One step of a plan, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepInfo {
    /// The convolution's torch name, or what else the step is.
    pub name: String,
    /// How it is computed.
    pub algorithm: String,
    /// Why it is computed so.
    pub reason: String,
    /// Input `[height, width, channels]`.
    pub input: [usize; 3],
    /// Output `[height, width, channels]`.
    pub output: [usize; 3],
    /// Whether a max pool after the convolution is part of the step.
    pub max_pool: bool,
    /// Kernel `[height, width]`; zeros where there is none.
    pub kernel: [usize; 2],
    /// Stride `[height, width]`; zeros where there is none.
    pub stride: [usize; 2],
    /// Groups of channels.
    pub groups: usize,
    /// Multiply-accumulates of the direct sum, for an image.
    pub macs: u64,
    /// Multiply-accumulates of the algorithm's products, for an image.
    pub products: u64,
    /// Bytes of the packed weights.
    pub weight_bytes: u64,
}

impl StepInfo {
    /// The name, and the pool that is part of the step.
    pub fn title(&self) -> String {
        format!("{}{}", self.name, if self.max_pool { " + max pool" } else { "" })
    }

    fn pool(name: String, algorithm: &str, before: [usize; 2], after: [usize; 2], channels: usize) -> Self {
        StepInfo {
            name,
            algorithm: algorithm.to_owned(),
            reason: "the only algorithm".to_owned(),
            input: [before[0], before[1], channels],
            output: [after[0], after[1], channels],
            max_pool: false,
            kernel: [0; 2],
            stride: [0; 2],
            groups: 1,
            macs: 0,
            products: 0,
            weight_bytes: 0,
        }
    }
}

/// A compiled network. Threads share it freely; each [`Session`] has buffers of its own.
#[derive(Debug)]
pub struct Plan {
    context: Arc<Context>,
    level: Level,
    batch: usize,
    input: [usize; 3],
    classes: usize,
    segments: Vec<Segment>,
    steps: Vec<StepInfo>,
    /// Memory of runs that have ended.
    idle: Mutex<Vec<Memory>>,
}

/// The buffers of one run at a time.
#[derive(Debug)]
struct Memory {
    /// Activations between segments, for the whole batch; neighbours take turns.
    between: [Aligned; 2],
    /// What all threads work in together.
    together: Local,
    /// What each thread works in alone.
    alone: Vec<Space<Local>>,
}

impl Memory {
    fn new(plan: &Plan, threads: usize) -> Self {
        let mut memory = Memory {
            between: Default::default(),
            together: Local::default(),
            alone: (0..threads).map(|_| Space::default()).collect(),
        };
        for (index, segment) in plan.segments.iter().enumerate() {
            if index + 1 < plan.segments.len() {
                memory.between[index % 2].grow(plan.batch * segment.output_len);
            }
            memory.together.grow(segment, segment.rest(plan.batch, threads), threads);
            for local in &mut memory.alone {
                let local = local.get_mut();
                local.grow(segment, segment.group.unwrap_or(0), 1);
            }
        }
        memory
    }

    /// Bytes of all activations.
    fn bytes(&self) -> usize {
        let alone = self.alone.iter().map(|local| local.lock().len());
        let between: usize = self.between.iter().map(Aligned::len).sum();
        4 * (between + self.together.len() + alone.sum::<usize>())
    }
}

impl Segment {
    /// The most images of a batch of at most `batch` that all threads take through the steps together.
    fn rest(&self, batch: usize, threads: usize) -> usize {
        self.group.map_or(batch, |group| batch.min(threads * group - 1))
    }
}

impl Plan {
    /// Compiles `network` for its image size.
    ///
    /// # Errors
    /// When the network's description is invalid, or the tuning was measured for something else.
    ///
    /// # Panics
    /// When the context's instruction-set level is not the network's.
    pub fn compile(network: &Network, options: PlanOptions) -> Result<Self, Error> {
        options.check(network)?;
        Plan::assemble((network.arch(), network.input()), network.layers(), options)
    }

    /// As [`compile`](Self::compile), for a network that is not needed beside the plan: its weights are freed while the plan's are
    /// made, so that there are never both in memory.
    ///
    /// # Errors
    /// As for [`compile`](Self::compile).
    ///
    /// # Panics
    /// As for [`compile`](Self::compile).
    pub fn compile_owned(network: Network, options: PlanOptions) -> Result<Self, Error> {
        options.check(&network)?;
        let (arch, input) = (network.arch().clone(), network.input());
        Plan::assemble((&arch, input), network.into_layers(), options)
    }

    /// Compiles with the algorithms that `choose` takes.
    pub(crate) fn choosing(
        network: &Network,
        batch: usize,
        context: Arc<Context>,
        choose: &Chooser,
    ) -> Result<Self, Error> {
        assert_eq!(network.level(), context.level(), "the network's instruction-set level");
        Plan::chosen((network.arch(), network.input()), network.layers(), batch, context, choose)
    }

    /// Compiles layers with options that have been checked.
    fn assemble<U, B>(
        about: (&Arch, [usize; 2]),
        layers: Layers<U, B, impl Borrow<BatchNorm>, impl Borrow<Linear>>,
        PlanOptions { batch, context, tuning }: PlanOptions,
    ) -> Result<Self, Error>
    where
        U: Iterator<Item: Borrow<Unit>>,
        B: Iterator<Item: Borrow<Block>>,
    {
        let measured = |name: &str| tuning.as_ref()?.choices().get(name).copied();
        let plan = Plan::chosen(about, layers, batch, context, &|name, _| measured(name))?;
        if let Some(tuning) = &tuning {
            tuning.check_applied(&plan)?;
        }
        Ok(plan)
    }

    fn chosen<U, B>(
        (arch, input): (&Arch, [usize; 2]),
        layers: Layers<U, B, impl Borrow<BatchNorm>, impl Borrow<Linear>>,
        batch: usize,
        context: Arc<Context>,
        choose: &Chooser,
    ) -> Result<Self, Error>
    where
        U: Iterator<Item: Borrow<Unit>>,
        B: Iterator<Item: Borrow<Block>>,
    {
        let batch = batch.max(1);
        let (segments, steps) = Compiler::new(&context, batch, choose).network(arch, input, layers)?;
        Ok(Plan {
            level: context.level(),
            context,
            batch,
            input: [input[0], input[1], arch.in_channels],
            classes: arch.num_classes,
            segments,
            steps,
            idle: Mutex::default(),
        })
    }

    /// Moves the weights into large pages, where the system grants them, and waits for it (Linux before 6.1 does it later):
    /// worth it for a plan that will run hundreds of times. Runs then take 1 to 6 % less time, the most for one image. It takes a
    /// tenth of a second for 300 MB, and several times as long on a virtual machine whose host has to find the memory.
    /// Other threads may run the plan meanwhile.
    pub fn settle(&self) {
        self.segments.iter().for_each(Segment::settle);
    }

    /// The largest batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Size of an image, `[height, width, channels]`.
    pub fn input(&self) -> [usize; 3] {
        self.input
    }

    /// Number of logits.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The instructions and threads of [`run`](Self::run).
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The steps in execution order.
    pub fn steps(&self) -> &[StepInfo] {
        &self.steps
    }

    /// Bytes of the packed weights.
    pub fn weight_bytes(&self) -> u64 {
        self.steps.iter().map(|step| step.weight_bytes).sum()
    }

    /// Bytes of activations that one run needs.
    pub fn activation_bytes(&self) -> usize {
        Memory::new(self, self.context.threads()).bytes()
    }

    /// Images `[N, H, W, C]` → logits `[N, 1, 1, classes]`, for any N up to the plan's batch, on the plan's threads.
    ///
    /// Runs of several threads at a time share the plan's threads; give each thread a [`session`](Self::session) with a
    /// context of its own where they should not.
    ///
    /// # Errors
    /// When a shape is not the plan's or the batch too large.
    pub fn run(&self, x: &Tensor, logits: &mut Tensor) -> Result<(), Error> {
        self.run_in(&self.context, x, logits, None)
    }

    fn run_in(
        &self,
        cx: &Context,
        x: &Tensor,
        logits: &mut Tensor,
        profile: Option<&Profile>,
    ) -> Result<(), Error> {
        self.check(x, logits)?;
        let mut memory = self.take(cx.threads());
        self.execute(cx, &mut memory, x.data(), logits.data_mut(), profile);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
        Ok(())
    }

    /// Memory that no run is using.
    fn take(&self, threads: usize) -> Memory {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = idle.iter().position(|memory| memory.alone.len() == threads);
        let found = fitting.map(|index| idle.swap_remove(index));
        drop(idle);
        found.unwrap_or_else(|| Memory::new(self, threads))
    }

    /// A way to run the plan with other threads than its own, such as one session with one thread for each thread of a
    /// server. Sessions share the weights; each has its own activations.
    ///
    /// # Panics
    /// When the context's instruction-set level is not the plan's.
    pub fn session(self: &Arc<Self>, context: Arc<Context>) -> Session {
        assert_eq!(context.level(), self.level, "the plan's instruction-set level");
        let memory = Memory::new(self, context.threads());
        Session { plan: Arc::clone(self), context, memory }
    }

    /// The time that each step takes on the images `x`, averaged over `runs` runs. Where threads take images through several
    /// steps alone, a step's time is the sum over the threads divided by their number.
    ///
    /// # Errors
    /// When the images do not fit the plan.
    pub fn profile(&self, x: &Tensor, runs: usize) -> Result<Vec<Duration>, Error> {
        let mut logits = Tensor::zeros([x.batch(), 1, 1, self.classes]);
        self.run(x, &mut logits)?;
        let profile = Profile::new(self.steps.len());
        for _ in 0..runs {
            self.run_in(&self.context, x, &mut logits, Some(&profile))?;
        }
        let divisor = (runs.max(1) * self.context.threads()) as u32;
        Ok(profile.times().map(|time| time / divisor).collect())
    }

    fn check(&self, x: &Tensor, logits: &Tensor) -> Result<(), ShapeError> {
        let [height, width, channels] = self.input;
        let same = |what: Arguments, found: [usize; 4], expected: [usize; 4]| {
            if found == expected {
                return Ok(());
            }
            let (what, expected, found) = (what.to_string(), expected.to_vec(), found.to_vec());
            Err(ShapeError::Mismatch { what, expected, found })
        };
        let batch = x.batch().clamp(1, self.batch);
        let images = format_args!("the batch of 1 to {} images", self.batch);
        same(images, x.shape(), [batch, height, width, channels])?;
        same(format_args!("the tensor of logits"), logits.shape(), [batch, 1, 1, self.classes])
    }

    fn execute(
        &self,
        cx: &Context,
        memory: &mut Memory,
        x: &[f32],
        logits: &mut [f32],
        profile: Option<&Profile>,
    ) {
        let [height, width, channels] = self.input;
        let images = x.len() / (height * width * channels);
        let Memory { between, together, alone } = memory;
        let last = self.segments.len() - 1;
        for (index, segment) in self.segments.iter().enumerate() {
            let [even, odd] = &mut *between;
            // Segment k writes buffer k mod 2 and reads the other one.
            let (from, to) = if index % 2 == 0 { (&*odd, even) } else { (&*even, odd) };
            let input = if index == 0 { x } else { &from.values()[..images * segment.input_len] };
            let output = if index == last {
                &mut *logits
            } else {
                &mut to.values_mut()[..images * segment.output_len]
            };
            segment.run_batch(cx, together, alone, input, output, profile);
        }
    }
}

impl Segment {
    /// Takes as many images as divide evenly among the threads through the steps group by group, and the rest together.
    fn run_batch(
        &self,
        cx: &Context,
        together: &mut Local,
        alone: &[Space<Local>],
        input: &[f32],
        output: &mut [f32],
        profile: Option<&Profile>,
    ) {
        let (images, threads) = (input.len() / self.input_len, cx.threads());
        let grouped = self.group.map_or(0, |group| images / (group * threads) * (group * threads));
        let (first, rest) = output.split_at_mut(grouped * self.output_len);
        if let Some(group) = self.group.filter(|_| grouped > 0) {
            cx.pool().pieces(first, group * self.output_len, |index, output| {
                let input = &input[index * group * self.input_len..][..group * self.input_len];
                with_free(alone, |local| self.run(cx, local, input, output, profile));
            });
        }
        if !rest.is_empty() {
            self.run(cx, together, &input[grouped * self.input_len..], rest, profile);
        }
    }
}

/// A plan with threads and activations of its own.
#[derive(Debug)]
pub struct Session {
    plan: Arc<Plan>,
    context: Arc<Context>,
    memory: Memory,
}

impl Session {
    /// As [`Plan::run`], on the session's threads.
    ///
    /// # Errors
    /// When a shape is not the plan's or the batch too large.
    pub fn run(&mut self, x: &Tensor, logits: &mut Tensor) -> Result<(), Error> {
        self.plan.check(x, logits)?;
        self.plan.execute(&self.context, &mut self.memory, x.data(), logits.data_mut(), None);
        Ok(())
    }
}
