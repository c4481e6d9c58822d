use super::*;
use crate::arch::Arch;
use crate::kernels::Level;
use crate::network::Initialise;
use crate::plan::PlanOptions;

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
