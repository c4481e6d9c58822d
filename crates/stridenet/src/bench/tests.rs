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
    let mut times = layers(&plan, &machine, &random_images([2, 32, 32, 3]), [1, 1]).unwrap();
    assert!(times.iter().all(|layer| layer.ms > 0.0 && layer.gflops >= 0.0));
    // The picture is of figures that do not depend on the machine.
    for (layer, number) in times.iter_mut().zip(1..) {
        let share = 0.85 + 0.005 * f64::from(number);
        let seconds = machine.floor(&layer.step, 2).as_secs_f64() / share;
        (layer.ms, layer.of_floor) = (1e3 * seconds, 100.0 * share);
        layer.gflops = 4.0 * layer.step.macs as f64 / seconds.max(1e-9) / 1e9;
    }
    let svg = drawing("resnet20 <&>", &machine, 2, &times);
    well_formed::check(&svg).unwrap();
    let convolutions = times.iter().filter(|layer| layer.step.macs > 0).count();
    assert_eq!(svg.matches("class=\"bar\"").count(), convolutions);
    assert!(svg.contains("class=\"label\""));
    assert!(svg.contains("the machine&#39;s peak"));
    // Nothing was measured.
    well_formed::check(&drawing("", &machine, 1, &[])).unwrap();
}
