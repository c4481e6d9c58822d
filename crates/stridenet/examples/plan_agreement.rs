//! Whether a model's compiled plan predicts what the network predicts layer by layer, on every image of a data set.
//!
//! `cargo run --release -p stridenet --example plan_agreement -- MODEL DATA`

use std::error::Error;
use std::sync::Arc;
use stridenet::Tensor;
use stridenet::data::{Loader, LoaderOptions, OpenOptions, open_evaluation};
use stridenet::layer::Workspace;
use stridenet::model::Model;

/// Images at a time.
const BATCH: usize = 128;

/// The index of the largest logit.
fn best(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, data] = &arguments[..] else { return Err("usage: plan_agreement MODEL DATA".into()) };
    let model = Model::open(model)?;
    let dataset = Arc::new(open_evaluation(data, &OpenOptions::default())?);
    let options = LoaderOptions { batch_size: BATCH, workers: 1 };
    let plan = model.plan(BATCH)?;
    let mut workspace = Workspace::default();
    let (mut images, mut same, mut right, mut worst) = (0, 0, [0, 0], 0.0f32);
    for batch in Loader::evaluate(model.context(), dataset, model.preprocess.clone(), options)? {
        let batch = batch?;
        let mut planned = Tensor::zeros([batch.images.batch(), 1, 1, plan.classes()]);
        plan.run(&batch.images, &mut planned)?;
        let unfused = model.network().infer(model.context(), &mut workspace, &batch.images)?;
        let rows = planned.data().chunks(plan.classes()).zip(unfused.data().chunks(plan.classes()));
        for ((planned, unfused), &label) in rows.zip(&batch.labels) {
            images += 1;
            same += usize::from(best(planned) == best(unfused));
            for (right, logits) in right.iter_mut().zip([planned, unfused]) {
                *right += usize::from(best(logits) == Some(label));
            }
            let differences = planned.iter().zip(unfused).map(|(a, b)| (a - b).abs());
            worst = differences.fold(worst, f32::max);
        }
    }
    println!(
        "{same} of {images} predictions are the same; right: plan {}, layer by layer {}",
        right[0], right[1]
    );
    println!("largest difference of a logit: {worst:e}");
    if same == images { Ok(()) } else { Err("the plan predicts other classes".into()) }
}
