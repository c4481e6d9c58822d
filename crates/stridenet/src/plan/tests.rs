//! Plans against the layer-by-layer network and against plain loops in `f64`.

mod accuracy;
mod networks;
mod reference;
mod runs;

use self::networks::{architectures, network, relative_l2};
use super::*;
use crate::bench::random_images;
use crate::layer::Workspace;

/// Largest relative L2 distance of logits that differ in the order of sums alone. A layer's sums of up to a few hundred
/// products of either sign round to about 8 times 2⁻²⁴ of their size; over at most 20 layers with gains near 1 that adds up
/// as √20, and a transform of tiles doubles it: 8 · 2⁻²⁴ · √20 · 2 = 4.3e-6.
const ROUNDING: f64 = 4.3e-6;

fn logits(plan: &Plan, x: &Tensor) -> Vec<f32> {
    let mut logits = Tensor::zeros([x.batch(), 1, 1, plan.classes()]);
    plan.run(x, &mut logits).unwrap();
    logits.into_data()
}

/// Images `range` of `x`.
fn part(x: &Tensor, range: std::ops::Range<usize>) -> Tensor {
    let [batch, height, width, channels] = x.shape();
    let image = x.data().len() / batch;
    let values = x.data()[range.start * image..range.end * image].to_vec();
    Tensor::new([range.len(), height, width, channels], values).unwrap()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

#[test]
fn plans_agree_with_networks_and_with_f64_at_every_level() {
    for arch in architectures() {
        let images = random_images([3, arch.img_size[0], arch.img_size[1], arch.in_channels]);
        for level in Level::available() {
            let context = Arc::new(Context::new(level, 2));
            let network = network(&arch, &context, 1);
            // The running statistics come from this level's own passes.
            let exact = reference::logits(&network, &images);
            let unfused = network.infer(&context, &mut Workspace::default(), &images).unwrap();
            for batch in [3, 16] {
                let context = Arc::clone(&context);
                let plan = Plan::compile(&network, PlanOptions { batch, context, tuning: None }).unwrap();
                let found = logits(&plan, &images);
                let errors = [relative_l2(&found, &wide(unfused.data())), relative_l2(&found, &exact)];
                assert!(
                    errors.iter().all(|&error| error <= ROUNDING),
                    "{}, {}, batch {batch}: off by {errors:?}",
                    arch.name,
                    level.name()
                );
                if batch == 16 && level == Level::detect() {
                    let options = PlanOptions { batch, context: plan.context().clone(), tuning: None };
                    let owned =
                        Plan::compile_owned(self::network(&arch, plan.context(), 1), options).unwrap();
                    assert_eq!(logits(&owned, &images), found, "{}", arch.name);
                }
            }
        }
    }
}
