//! A network with everything that belongs to its use: how images are prepared, and what its classes are called.
//!
//! ```no_run
//! use stridenet::image;
//! use stridenet::model::Model;
//!
//! # fn main() -> Result<(), stridenet::Error> {
//! let model = Model::open("runs/first")?;
//! let picture = image::open("shirt.png".as_ref())?;
//! for prediction in model.classify(&picture)?.iter().take(3) {
//!     println!("{:5.1} %  {}", 100.0 * prediction.probability, prediction.label);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Threads share a model: [`Model::classify`] takes `&self`. Where each thread is to compute alone, as in a server, compile a
//! plan once and give every thread a session:
//!
//! ```no_run
//! use std::sync::Arc;
//! use stridenet::Tensor;
//! use stridenet::kernels::Context;
//! use stridenet::model::Model;
//!
//! # fn main() -> Result<(), stridenet::Error> {
//! let model = Model::open("runs/first")?;
//! let plan = Arc::new(model.plan(1)?);
//! // A server's plan will run for long.
//! plan.settle();
//! std::thread::scope(|scope| {
//!     for _ in 0..4 {
//!         scope.spawn(|| {
//!             let alone = Arc::new(Context::new(plan.context().level(), 1));
//!             let mut session = plan.session(alone);
//!             let [height, width, channels] = plan.input();
//!             let image = Tensor::zeros([1, height, width, channels]);
//!             let mut logits = Tensor::zeros([1, 1, 1, plan.classes()]);
//!             session.run(&image, &mut logits).expect("the shapes are the plan's");
//!         });
//!     }
//! });
//! # Ok(())
//! # }
//! ```

mod adapt;
mod description;
mod import;
mod timm;

pub use description::Description;
pub use import::{ImportOptions, Imported, import};

use crate::exchange::{OnnxOptions, OnnxReport, write_onnx};
use crate::image::{Picture, Preprocess};
use crate::kernels::{Context, loss};
use crate::network::{DropRates, Network};
use crate::plan::{Plan, PlanOptions};
use crate::weights::{Account, ModelFolder};
use crate::{Error, Tensor};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A classifier: network, preprocessing, class names, and what it computes with.
#[derive(Debug)]
pub struct Model {
    network: Network,
    /// How images are prepared.
    pub preprocess: Preprocess,
    /// The classes' names, in the order of the logits.
    pub classes: Vec<String>,
    /// What training leaves out at random; nothing is in use.
    pub drop: DropRates,
    context: Arc<Context>,
    /// The network compiled for one image at a time, once that is wanted.
    single: Mutex<Option<Arc<Plan>>>,
}

/// How a model is opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// The instructions and threads that the model computes with.
    pub context: Arc<Context>,
    /// How the weights' file is read, and what is changed in it.
    pub import: ImportOptions,
}

impl Default for OpenOptions {
    /// The best instructions of this CPU, a thread for each physical processor that the process may use, and nothing changed.
    fn default() -> Self {
        OpenOptions { context: Arc::new(Context::detect()), import: ImportOptions::default() }
    }
}

/// A class with its probability.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// The class's place in the logits.
    pub index: usize,
    /// The class's name.
    pub label: String,
    /// Softmax of the logits.
    pub probability: f32,
}

/// A model with what was found while opening it.
#[derive(Debug)]
pub struct Opened {
    /// The model.
    pub model: Model,
    /// What became of the file's tensors.
    pub account: Account,
    /// What neither files nor options say and was assumed; a sentence for each, for the user to read.
    pub assumptions: Vec<String>,
    /// The weights' file.
    pub weights: PathBuf,
}

impl Model {
    /// A model of these parts.
    ///
    /// # Panics
    /// When the network's instruction-set level is not the context's, or there is not one name for each of its classes.
    pub fn new(
        context: Arc<Context>,
        network: Network,
        preprocess: Preprocess,
        classes: Vec<String>,
    ) -> Self {
        assert_eq!(network.level(), context.level(), "the network's instruction-set level");
        assert_eq!(network.arch().num_classes, classes.len(), "a name for each class");
        let drop = DropRates::default();
        Model { network, preprocess, classes, drop, context, single: Mutex::default() }
    }

    /// Opens a run folder, a model folder or a file of weights, as [`import`] does, to compute with the best instructions of this
    /// CPU and a thread for each physical processor that the process may use.
    ///
    /// # Errors
    /// When files are missing, damaged or contradict each other.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Ok(Model::open_with(path, &OpenOptions::default())?.model)
    }

    /// As [`open`](Self::open), with options; also says what became of the file's tensors.
    ///
    /// # Errors
    /// When files are missing, damaged or contradict each other.
    pub fn open_with(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Opened, Error> {
        let context = Arc::clone(&options.context);
        let imported = import(path.as_ref(), &options.import)?;
        let Imported { description, state, weights, account, assumptions, .. } = imported;
        let Description { arch, preprocess, classes, drop } = description;
        let (network, _) = Network::from_state(&context, &arch, preprocess.input_size, &weights, state)?;
        let model = Model { drop, ..Model::new(context, network, preprocess, classes) };
        Ok(Opened { model, account, assumptions, weights })
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The network, to be trained. What was compiled of it is forgotten.
    pub fn network_mut(&mut self) -> &mut Network {
        *self.single.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
        &mut self.network
    }

    /// The network, without the rest.
    pub fn into_network(self) -> Network {
        self.network
    }

    /// The instructions and threads that the model computes with.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Compiles the network for batches of up to `batch` images, with the model's instructions and threads.
    ///
    /// # Errors
    /// When the network's description is invalid.
    pub fn plan(&self, batch: usize) -> Result<Plan, Error> {
        Plan::compile(&self.network, PlanOptions { batch, context: Arc::clone(&self.context), tuning: None })
    }

    /// The network compiled for one image at a time: now, or earlier.
    fn single(&self) -> Result<Arc<Plan>, Error> {
        let mut single = self.single.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = &*single {
            return Ok(Arc::clone(plan));
        }
        Ok(Arc::clone(single.insert(Arc::new(self.plan(1)?))))
    }

    /// What the model is apart from its weights.
    pub fn description(&self) -> Description {
        let (arch, preprocess) = (self.network.arch().clone(), self.preprocess.clone());
        Description { arch, preprocess, classes: self.classes.clone(), drop: self.drop }
    }

    /// Writes a model folder: `model.safetensors` with torch's names and `config.json` in timm's form.
    ///
    /// # Errors
    /// When the folder or a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        ModelFolder::save(folder, &self.network.state()?, &self.description().to_config(folder)?)?;
        Ok(())
    }

    /// Writes an ONNX file for other programs to run, with class names and preprocessing in its metadata (`config.json` in
    /// timm's form, under that key), and checks it by computing it. With `folded`, batch norms go into the convolutions
    /// before them.
    ///
    /// # Errors
    /// When the file cannot be written, or does not compute what the network computes; then nothing is at `path`.
    pub fn export_onnx(&self, path: &Path, folded: bool) -> Result<OnnxReport, Error> {
        let config = self.description().to_config(path)?.to_json();
        let options = OnnxOptions { folded, metadata: vec![(import::ONNX_CONFIG.to_owned(), config)] };
        write_onnx(&self.context, &self.network, path, &options)
    }

    /// All classes with their probabilities for a picture, the most probable first.
    ///
    /// The first call compiles the network, which takes longer than the later ones.
    ///
    /// # Errors
    /// When the picture cannot be prepared, or `preprocess` does not make images of the network's size.
    pub fn classify(&self, picture: &Picture) -> Result<Vec<Prediction>, Error> {
        let [height, width] = self.preprocess.input_size;
        let mut x = Tensor::zeros([1, height, width, self.preprocess.channels]);
        self.preprocess.apply(picture, x.data_mut())?;
        let mut logits = Tensor::zeros([1, 1, 1, self.classes.len()]);
        self.single()?.run(&x, &mut logits)?;
        Ok(self.rank(logits.data()))
    }

    /// All classes with their probabilities for one row of logits, the most probable first.
    ///
    /// # Panics
    /// When there is not one logit for each class.
    pub fn rank(&self, logits: &[f32]) -> Vec<Prediction> {
        assert_eq!(logits.len(), self.classes.len(), "a logit for each class");
        let mut probabilities = vec![0.0; logits.len()];
        loss::softmax(&self.context, logits.len(), logits, &mut probabilities);
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let prediction = |index| Prediction {
            index,
            label: self.classes[index].clone(),
            probability: probabilities[index],
        };
        order.into_iter().map(prediction).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Arch;
    use crate::image::Normalisation;
    use crate::kernels::Level;
    use crate::layer::Workspace;
    use crate::network::Initialise;
    use crate::weights::{ModelConfig, WEIGHTS_FILE};
    use serde_json::Value;

    fn context(threads: usize) -> Arc<Context> {
        Arc::new(Context::new(Level::detect(), threads))
    }

    /// A model of a small network of 10 classes with random weights.
    fn random(cx: &Arc<Context>) -> Model {
        let arch = Arch::preset("resnet20").unwrap();
        let network = Network::new(&arch, [32, 32], cx.level(), Initialise::default()).unwrap();
        let preprocess = Preprocess::exact([32, 32], Normalisation::imagenet());
        let classes = (0..10).map(|class| format!("class {class}")).collect();
        Model::new(Arc::clone(cx), network, preprocess, classes)
    }

    /// Opens the model in `folder`.
    fn open(cx: &Arc<Context>, folder: &Path) -> Result<Model, Error> {
        let options = OpenOptions { context: Arc::clone(cx), import: ImportOptions::default() };
        Ok(Model::open_with(folder, &options)?.model)
    }

    fn logits(cx: &Context, model: &Model) -> Vec<f32> {
        let values = (0..32 * 32 * 3).map(|value| (value % 11) as f32 / 5.0 - 1.0).collect();
        let x = Tensor::new([1, 32, 32, 3], values).unwrap();
        model.network.infer(cx, &mut Workspace::default(), &x).unwrap().into_data()
    }

    #[test]
    fn a_saved_model_opens_to_the_same_bits_with_and_without_our_own_key() {
        let (cx, folder) = (context(2), tempfile::tempdir().unwrap());
        let model = random(&cx);
        let expected = logits(&cx, &model);
        model.save(folder.path()).unwrap();
        let opened = open(&cx, folder.path()).unwrap();
        assert_eq!(logits(&cx, &opened), expected);
        assert_eq!(opened.classes[3], "class 3");
        // What was opened can be saved again, and is the same file.
        let again = folder.path().join("again");
        opened.save(&again).unwrap();
        let bytes = |folder: &Path| std::fs::read(folder.join(WEIGHTS_FILE)).unwrap();
        assert!(bytes(&again) == bytes(folder.path()));
        // What timm or torchvision would leave: the architecture's name alone.
        let path = folder.path().join("config.json");
        let mut config = ModelConfig::read(&path).unwrap();
        config.stridenet = None;
        config.label_names.clear();
        config.write(&path).unwrap();
        let opened = open(&cx, folder.path()).unwrap();
        assert_eq!(logits(&cx, &opened), expected);
        assert_eq!(opened.classes[3], "3");
    }

    #[test]
    fn without_a_known_architecture_the_weights_show_it() {
        let (cx, folder) = (context(1), tempfile::tempdir().unwrap());
        let model = random(&cx);
        let expected = logits(&cx, &model);
        model.save(folder.path()).unwrap();
        let path = folder.path().join("config.json");
        let mut config = ModelConfig::read(&path).unwrap();
        (config.stridenet, config.architecture) = (None, "my_net".into());
        config.write(&path).unwrap();
        let options = OpenOptions { context: Arc::clone(&cx), import: ImportOptions::default() };
        let opened = Model::open_with(folder.path(), &options).unwrap();
        assert_eq!(logits(&cx, &opened.model), expected);
        assert_eq!(opened.model.classes[3], "class 3");
        assert_eq!(
            opened.assumptions[0],
            "the architecture \"my_net\" is not known; from the weights it is taken for resnet20"
        );
        std::fs::remove_file(&path).unwrap();
        let opened = Model::open_with(folder.path(), &options).unwrap();
        assert_eq!(logits(&cx, &opened.model), expected);
        assert_eq!(opened.model.classes[3], "3");
        assert!(opened.assumptions[0].starts_with("there is no config.json"), "{:?}", opened.assumptions);
        assert_eq!(opened.assumptions.len(), 3);
    }

    fn gradient() -> Picture<'static> {
        let pixels: Vec<u8> = (0..40 * 50 * 3).map(|value| (value % 251) as u8).collect();
        Picture::new(40, 50, 3, pixels).unwrap()
    }

    #[test]
    fn threads_share_a_model_and_see_what_was_trained() {
        fn shared<T: Send + Sync>(_: &T) {}
        let cx = context(2);
        let mut model = random(&cx);
        shared(&model);
        shared(&model.plan(2).unwrap());
        let picture = gradient();
        let first = model.classify(&picture).unwrap();
        assert_eq!(first.len(), 10);
        assert!(first.is_sorted_by(|a, b| a.probability >= b.probability), "{first:?}");
        assert!((first.iter().map(|prediction| prediction.probability).sum::<f32>() - 1.0).abs() < 1e-5);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| model.classify(&picture).unwrap())).collect();
            for thread in threads {
                assert_eq!(thread.join().unwrap(), first);
            }
        });
        // The bias of the least probable class.
        let last = first[9].index;
        let network = model.network_mut();
        network.parameters_mut().last().unwrap().value[last] += 100.0;
        assert_eq!(model.classify(&picture).unwrap()[0].index, last);
    }

    #[test]
    fn images_of_another_size_are_predicted_when_asked_for() {
        let (cx, folder) = (context(1), tempfile::tempdir().unwrap());
        random(&cx).save(folder.path()).unwrap();
        let import = ImportOptions { img_size: Some([48, 40]), ..ImportOptions::default() };
        let options = OpenOptions { context: cx, import };
        let model = Model::open_with(folder.path(), &options).unwrap().model;
        assert_eq!(model.plan(1).unwrap().input(), [48, 40, 3]);
        assert_eq!(model.classify(&gradient()).unwrap().len(), 10);
    }

    #[test]
    fn configurations_that_contradict_the_network_are_refused() {
        let (cx, folder) = (context(1), tempfile::tempdir().unwrap());
        random(&cx).save(folder.path()).unwrap();
        let path = folder.path().join("config.json");
        let original = ModelConfig::read(&path).unwrap();
        let refusal = |change: &dyn Fn(&mut ModelConfig)| {
            let mut config = original.clone();
            change(&mut config);
            config.write(&path).unwrap();
            open(&cx, folder.path()).unwrap_err().to_string()
        };
        let cases = [
            (
                refusal(&|config| {
                    config.stridenet = None;
                    config.model_args.insert("aa_layer".into(), "blur".into());
                }),
                "model_args has \"aa_layer\" with \"blur\"",
            ),
            (
                refusal(&|config| config.pretrained_cfg.interpolation = "magic".into()),
                "unknown variant `magic`",
            ),
            (refusal(&|config| config.pretrained_cfg.crop_mode = "round".into()), "unknown variant `round`"),
            (refusal(&|config| config.pretrained_cfg.crop_mode = "r\no".into()), "unknown variant `r\\no`"),
            (
                refusal(&|config| {
                    config.stridenet = None;
                    config.model_args.insert("aa_layer".into(), "\u{7f}".into());
                }),
                "\\u{7f}",
            ),
            (refusal(&|config| config.stridenet = Some(Value::Bool(true))), "the key stridenet"),
        ];
        for (message, part) in cases {
            assert!(message.contains(part) && message.contains("config.json"), "{message}");
        }
    }
}
