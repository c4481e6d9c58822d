//! A plan predicts what the unfused network predicts.

use std::sync::Arc;
use stridenet::Tensor;
use stridenet::arch::{Arch, Overrides};
use stridenet::data::{Loader, LoaderOptions, OpenOptions, open_evaluation};
use stridenet::evaluate::{Evaluation, evaluate};
use stridenet::image::Preprocess;
use stridenet::kernels::{Context, Level};
use stridenet::layer::Workspace;
use stridenet::network::{Initialise, Network};
use stridenet::plan::{Plan, PlanOptions};

/// Images that are compared.
const IMAGES: usize = 448;
const BATCH: usize = 64;

/// The largest relative L2 distance of a batch's logits that rounding explains: 20 layers of sums of up to 576 terms, each
/// layer off by some 1e-6 of its size (2⁻²⁴ √576 is 1.4e-6), add up as a random walk to less than 1e-5.
const LIMIT: f64 = 1e-5;

fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let pairs = found.iter().zip(expected);
    norm(&mut pairs.map(|(&a, &b)| f64::from(a) - f64::from(b)))
        / norm(&mut expected.iter().map(|&value| f64::from(value)))
}

#[test]
fn the_embedded_sample_has_the_same_predictions_through_a_plan() {
    let dataset = Arc::new(open_evaluation("sample", &OpenOptions::default()).unwrap());
    let changes = Overrides { in_channels: Some(1), img_size: Some([28, 28]), ..Overrides::default() };
    let arch = Arch::preset("resnet20").unwrap().with(&changes).unwrap();
    let preprocess = Preprocess::exact([28, 28], dataset.default_normalisation().unwrap());
    let loading = Arc::new(Context::detect());
    let batches = || {
        let options = LoaderOptions { batch_size: BATCH, workers: 1 };
        Loader::evaluate(&loading, Arc::clone(&dataset), preprocess.clone(), options).unwrap()
    };
    for level in Level::available() {
        let cx = Arc::new(Context::new(level, 2));
        let mut network = Network::new(&arch, [28, 28], level, Initialise::default()).unwrap();
        let mut workspace = Workspace::default();
        // Running statistics of real images, which folding has to get right.
        for batch in batches().take(4) {
            network.forward(&cx, &mut workspace, batch.unwrap().images).unwrap();
        }
        let options = PlanOptions { batch: BATCH, context: Arc::clone(&cx), tuning: None };
        let plan = Plan::compile(&network, options).unwrap();
        let mut unfused = Vec::new();
        let measure = |infer: &mut dyn FnMut(&Tensor, &mut Tensor)| -> Evaluation {
            let infer = |x: &Tensor, logits: &mut Tensor| {
                infer(x, logits);
                Ok(())
            };
            evaluate(&cx, 10, batches(), infer, |done| done < IMAGES).unwrap()
        };
        let expected = measure(&mut |x, logits| {
            let inferred = network.infer(&cx, &mut workspace, x).unwrap();
            logits.data_mut().copy_from_slice(inferred.data());
            unfused.push(inferred);
        });
        let mut unfused = unfused.iter();
        let found = measure(&mut |x, logits| {
            plan.run(x, logits).unwrap();
            let expected = unfused.next().unwrap();
            let error = distance(logits.data(), expected.data());
            assert!(error < LIMIT, "{}: {error:e}", level.name());
        });
        assert_eq!(found.count, IMAGES);
        assert_eq!((found.top1, &found.confusion), (expected.top1, &expected.confusion), "{}", level.name());
        assert!(
            (found.loss - expected.loss).abs() < 1e-5 * expected.loss,
            "{} {}",
            found.loss,
            expected.loss
        );
        assert!(found.confusion.iter().filter(|row| row.iter().any(|&count| count > 0)).count() > 1);
    }
}
