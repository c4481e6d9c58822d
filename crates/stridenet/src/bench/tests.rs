use super::*;
use crate::arch::Arch;
use crate::kernels::Level;
use crate::network::Initialise;
use crate::plan::PlanOptions;
use crate::report::well_formed;

#[test]
fn a_plan_of_other_weights_is_found_out() {
    let arch = Arch::preset("resnet20").unwrap();
    let network = |seed| {
        Network::new(&arch, [32, 32], Level::detect(), Initialise { seed, ..Initialise::default() }).unwrap()
    };
    let plan = Plan::compile(&network(1), PlanOptions { batch: 2, ..PlanOptions::default() }).unwrap();
    let (cx, images) = (plan.context().clone(), random_images([2, 32, 32, 3]));
    assert!(check(&cx, &network(1), &plan, &images).unwrap() < 1e-5);
    let error = check(&cx, &network(2), &plan, &images).unwrap_err().to_string();
    assert!(error.contains("differ from the network's"), "{error}");
}

#[test]
fn timing_calls_often_enough() {
    let mut calls = 0;
    let timing = time(Duration::ZERO, || {
        calls += 1;
        Ok::<(), ()>(())
    });
    let timing = timing.unwrap();
    assert_eq!((calls, timing.calls), (7, 5));
    assert!(timing.min <= timing.median);
}

#[test]
fn layers_are_drawn_with_their_limits() {
    let arch = Arch::preset("resnet20").unwrap();
    let network = Network::new(&arch, [32, 32], Level::detect(), Initialise::default()).unwrap();
    let plan = Plan::compile(&network, PlanOptions { batch: 2, ..PlanOptions::default() }).unwrap();
    let machine = Machine { peak_flops: 1e11, read_bandwidth: 1e10 };
    let times = layers(&plan, &machine, &random_images([2, 32, 32, 3]), [1, 1]).unwrap();
    let svg = drawing("resnet20 <&>", &machine, 2, &times);
    well_formed::check(&svg).unwrap();
    let convolutions = times.iter().filter(|layer| layer.step.macs > 0).count();
    assert_eq!(svg.matches("class=\"bar\"").count(), convolutions);
    assert!(
        svg.matches("class=\"label\"").count() > 0
            && svg.contains("the machine's peak".replace('\'', "&#39;").as_str())
    );
    // Nothing was measured.
    well_formed::check(&drawing("", &machine, 1, &[])).unwrap();
}
