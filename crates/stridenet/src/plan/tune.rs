//! Measuring which algorithm is the fastest for each layer on this machine.
//!
//! Each candidate is measured in its place, inside a plan that uses it wherever it fits, on a full batch: what a layer
//! finds in the caches is what the layers before it have left. The plans take turns, so that a machine that slows down
//! slows all of them, and medians over the rounds are compared.

use super::{Choice, Plan};
use crate::algorithm::Estimate;
use crate::arch::Arch;
use crate::file::{FileError, write_atomically};
use crate::kernels::Context;
use crate::network::Network;
use crate::random::random_images;
use crate::{Error, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;

/// A tuning cannot be had, does not fit, or cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TuneError {
    /// The tuning was measured under other conditions.
    #[error("the tuning was measured for {found}, expected {expected}; measure again or compile without it")]
    Conditions {
        /// The first condition that differs, as it was measured.
        found: String,
        /// The same condition, as it is asked for.
        expected: String,
    },
    /// The tuning names a layer or an algorithm that the plan does not have.
    #[error(
        "the tuning wants {choice} for the layer {layer}, which does not have it; measure again or compile without it"
    )]
    Unfit {
        /// The layer.
        layer: String,
        /// The algorithm.
        choice: Choice,
    },
    /// The bytes are no file of tunings.
    #[error(
        "{} is not a file of tunings: {problem}; delete it, or pass --tune to `stridenet bench` to write it anew",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found, with its line and column.
        problem: String,
    },
    /// The measurement was stopped.
    #[error("tuning was interrupted; nothing was changed")]
    Stopped,
}

/// What a tuning is measured for; under other conditions another algorithm may be the fastest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conditions {
    /// stridenet's version.
    pub version: String,
    /// The CPU's name.
    pub cpu: String,
    /// The instruction-set level.
    pub level: String,
    /// Threads.
    pub threads: usize,
    /// The plan's largest batch.
    pub batch: usize,
    /// The network's description, with the size of the images it is compiled for.
    pub arch: Arch,
}

impl Conditions {
    /// The conditions of a plan for `network` with these options, on this machine.
    pub fn new(network: &Network, batch: usize, cx: &Context) -> Self {
        Conditions {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cpu: cpu_name(),
            level: cx.level().name().to_owned(),
            threads: cx.threads(),
            batch: batch.max(1),
            arch: Arch { img_size: network.input(), ..network.arch().clone() },
        }
    }

    /// Each condition in words.
    fn words(&self) -> [String; 7] {
        let Conditions { version, cpu, level, threads, batch, arch } = self;
        let [height, width] = arch.img_size;
        // Networks of the same name may differ.
        let arch = format!("the network {}", serde_json::to_string(arch).unwrap_or_default());
        [
            format!("stridenet {version}"),
            format!("the CPU {cpu}"),
            format!("{level} instructions"),
            format!("{threads} threads"),
            format!("batches of {batch}"),
            format!("images of {height}x{width}"),
            arch,
        ]
    }

    /// Names the first difference from what was `found`.
    fn check(&self, found: &Conditions) -> Result<(), TuneError> {
        let pairs = self.words().into_iter().zip(found.words());
        match pairs.into_iter().find(|(expected, found)| expected != found) {
            Some((expected, found)) => Err(TuneError::Conditions { found, expected }),
            None => Ok(()),
        }
    }
}

/// The algorithms that were the fastest, layer by layer, and what they were measured for.
///
/// Algorithms round differently, so that a plan with a tuning may give other last bits than one without, and a tuning that
/// was measured with other threads other ones again. One plan gives the same bits on any number of threads, tuned or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// What it was measured for.
    pub(super) conditions: Conditions,
    /// The algorithm of each layer that has several, by the layer's torch name.
    pub(super) choices: BTreeMap<String, Choice>,
}

/// Rounds in which the plans take turns.
const ROUNDS: usize = 7;

/// Time of a plan's turn, where its runs are short.
const TURN: Duration = Duration::from_millis(30);

/// Most runs of a plan in its turn.
const MOST_RUNS: usize = 20;

/// Percent of the estimated choice's time that another one may take at most, lest noise decides.
const BETTER: u128 = 97;

impl Tuning {
    /// Measures the candidates for a plan of `network` for `batch` images at once with the context's instructions and
    /// threads. Takes some seconds to a minute; `progress(done, total)` is told of each step and may stop by returning
    /// `false`.
    ///
    /// # Errors
    /// When the network's description is invalid, or with [`TuneError::Stopped`].
    ///
    /// # Panics
    /// When the context's instruction-set level is not the network's.
    pub fn measure(
        network: &Network,
        batch: usize,
        context: &Arc<Context>,
        progress: impl FnMut(usize, usize) -> bool,
    ) -> Result<Self, Error> {
        let conditions = Conditions::new(network, batch, context);
        let compile = |choose: &dyn Fn(&str, &[Estimate]) -> Option<Choice>| {
            let plan = Plan::choosing(network, batch, Arc::clone(context), choose);
            plan.inspect(Plan::settle)
        };
        let layers: RefCell<BTreeMap<String, Vec<Choice>>> = RefCell::default();
        let estimated = compile(&|name, candidates| {
            let choices = candidates.iter().map(|candidate| candidate.choice).collect();
            layers.borrow_mut().insert(name.to_owned(), choices);
            None
        })?;
        let mut layers = layers.into_inner();
        layers.retain(|_, choices| choices.len() > 1);
        // Plan k uses the k-th algorithm wherever there is one, in the order of all algorithms.
        let kth =
            |choices: &[Choice], k: usize| Choice::all().filter(|choice| choices.contains(choice)).nth(k);
        let most = layers.values().map(Vec::len).max().unwrap_or(0);
        let plans = (0..most)
            .map(|k| compile(&|name, _| kth(layers.get(name)?, k)))
            .collect::<Result<Vec<Plan>, Error>>()?;
        let [height, width, channels] = estimated.input();
        let images = random_images([batch.max(1), height, width, channels]);
        let mut round = Round { images: &images, done: 0, total: ROUNDS * (plans.len() + 2), progress };
        let mut samples: HashMap<(&str, Choice), Vec<Duration>> = HashMap::new();
        let runs = plans.iter().map(|plan| round.runs(plan)).collect::<Result<Vec<usize>, Error>>()?;
        for _ in 0..ROUNDS {
            for (k, plan) in plans.iter().enumerate() {
                for (step, time) in plan.steps().iter().zip(round.profile(plan, runs[k])?) {
                    let Some((name, choices)) = layers.get_key_value(&step.name) else { continue };
                    if let Some(choice) = kth(choices, k) {
                        samples.entry((name, choice)).or_default().push(time);
                    }
                }
            }
        }
        drop(plans);
        let mut time =
            |name, choice| samples.get_mut(&(name, choice)).map_or(Duration::MAX, |times| median(times));
        let mut choices: BTreeMap<String, Choice> = BTreeMap::new();
        for (name, candidates) in &layers {
            let times: Vec<_> = candidates.iter().map(|&choice| (choice, time(name, choice))).collect();
            choices.insert(name.clone(), fastest(&times));
        }
        // Together the choices may do worse than each by itself: a layer works on what its neighbours leave in the caches.
        let tuned = compile(&|name, _| choices.get(name).copied())?;
        let mut totals = [Vec::new(), Vec::new()];
        let runs = round.runs(&tuned)?;
        for _ in 0..ROUNDS {
            for (plan, totals) in [&estimated, &tuned].into_iter().zip(&mut totals) {
                totals.push(round.profile(plan, runs)?.iter().sum());
            }
        }
        let [before, after] = totals.each_mut().map(|times| median(times));
        if after > before {
            choices = layers.iter().map(|(name, candidates)| (name.clone(), candidates[0])).collect();
        }
        Ok(Tuning { conditions, choices })
    }

    /// What it was measured for.
    pub fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    /// The algorithm of each layer that has several, by the layer's torch name.
    pub fn choices(&self) -> &BTreeMap<String, Choice> {
        &self.choices
    }

    /// Refuses a tuning that was measured for something else.
    pub(super) fn check(&self, network: &Network, batch: usize, cx: &Context) -> Result<(), TuneError> {
        Conditions::new(network, batch, cx).check(&self.conditions)
    }

    /// Refuses a tuning with a layer or an algorithm that the compiled plan does not have.
    pub(super) fn check_applied(&self, plan: &Plan) -> Result<(), TuneError> {
        let applied = |layer: &str, choice: Choice| {
            plan.steps().iter().any(|step| step.name == layer && step.algorithm == choice.to_string())
        };
        match self.choices.iter().find(|(layer, choice)| !applied(layer, **choice)) {
            Some((layer, &choice)) => Err(TuneError::Unfit { layer: layer.clone(), choice }),
            None => Ok(()),
        }
    }
}

/// Plans that take turns on the same images.
struct Round<'a, P> {
    images: &'a Tensor,
    done: usize,
    total: usize,
    progress: P,
}

impl<P: FnMut(usize, usize) -> bool> Round<'_, P> {
    /// How many runs fill a plan's turn.
    fn runs(&self, plan: &Plan) -> Result<usize, Error> {
        let mut logits = Tensor::zeros([self.images.batch(), 1, 1, plan.classes()]);
        plan.run(self.images, &mut logits)?;
        let start = Instant::now();
        plan.run(self.images, &mut logits)?;
        let runs = TURN.as_secs_f64() / start.elapsed().as_secs_f64().max(1e-9);
        Ok((runs.ceil() as usize).min(MOST_RUNS))
    }

    /// A plan's turn.
    fn profile(&mut self, plan: &Plan, runs: usize) -> Result<Vec<Duration>, Error> {
        let times = plan.profile(self.images, runs)?;
        self.done += 1;
        match (self.progress)(self.done, self.total) {
            true => Ok(times),
            false => Err(TuneError::Stopped.into()),
        }
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// The choice with the shortest time, unless the first one, the estimate, takes hardly longer.
fn fastest(times: &[(Choice, Duration)]) -> Choice {
    let (estimated, limit) = times[0];
    let best = times.iter().min_by_key(|(_, time)| *time).copied().unwrap_or(times[0]);
    if 100 * best.1.as_nanos() <= BETTER * limit.as_nanos() { best.0 } else { estimated }
}

/// The CPU's name, where the system tells (Linux), or its architecture.
fn cpu_name() -> String {
    let told = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| parse_cpu(&text));
    told.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// The model's name in Linux's words, or for ARM its maker's and its own number.
fn parse_cpu(text: &str) -> Option<String> {
    let value = |key: &str| {
        let (_, value) =
            text.lines().filter_map(|line| line.split_once(':')).find(|(found, _)| found.trim() == key)?;
        Some(value.trim().to_owned())
    };
    value("model name").or_else(|| Some(format!("{} {}", value("CPU implementer")?, value("CPU part")?)))
}

/// What a file of tunings holds.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Tunings; those of other versions of stridenet may look different and stay as they are.
    tunings: Vec<Value>,
}

impl File {
    /// Reads a file; one that does not exist is empty.
    fn read(path: &Path) -> Result<Self, Error> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(File::default());
            }
            Err(error) => return Err(FileError::read(path, error).into()),
        };
        serde_json::from_slice(&text).map_err(|error| damaged(path, &error).into())
    }

    /// The tunings of this version, with their places.
    fn ours(&self, path: &Path) -> Result<Vec<(usize, Tuning)>, Error> {
        let version =
            |value: &Value| Some(value.get("conditions")?.get("version")? == env!("CARGO_PKG_VERSION"));
        let mut ours = Vec::new();
        for (place, value) in self.tunings.iter().enumerate() {
            if version(value) != Some(false) {
                let tuning = serde_json::from_value(value.clone()).map_err(|error| damaged(path, &error))?;
                ours.push((place, tuning));
            }
        }
        Ok(ours)
    }
}

fn damaged(path: &Path, error: &serde_json::Error) -> TuneError {
    let problem = error.to_string().replace(char::is_control, " ");
    TuneError::Damaged { path: path.to_path_buf(), problem }
}

impl Tuning {
    /// Name of the file of tunings in a model folder.
    pub const FILE: &str = "tuning.json";

    /// The tuning in a file that was measured under exactly these conditions, if there is one. A file that does not exist has
    /// none.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn load(path: &Path, conditions: &Conditions) -> Result<Option<Self>, Error> {
        let tunings = File::read(path)?.ours(path)?;
        Ok(tunings.into_iter().map(|(_, tuning)| tuning).find(|tuning| tuning.conditions == *conditions))
    }

    /// Writes the tuning into a file, beside those for other conditions and in the place of one for the same. A damaged file
    /// is replaced; folders are made.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let read = || {
            let file = File::read(path)?;
            let ours = file.ours(path)?;
            Ok((file, ours))
        };
        let (mut file, ours) = match read() {
            Err(Error::Tune(TuneError::Damaged { .. })) => Default::default(),
            read => read?,
        };
        let value = serde_json::to_value(self).map_err(|error| FileError::write(path, error.into()))?;
        match ours.iter().find(|(_, tuning)| tuning.conditions == self.conditions) {
            Some(&(place, _)) => file.tunings[place] = value,
            None => file.tunings.push(value),
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|source| FileError::write(folder, source))?;
        }
        write_atomically(path, |to| {
            serde_json::to_writer_pretty(&mut *to, &file)?;
            to.write_all(b"\n")
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
