//! Layers' rates as a picture.

use super::{LayerTime, Machine};
use crate::report::chart::{Axis, LineChart, Point, Series, Stroke};

/// Layers whose names stand in the picture: those that lose the most time.
const NAMED: usize = 8;

/// An SVG document: for each convolution in execution order the rate of the direct sum's arithmetic, with a bar up to the rate
/// at which the layer's own algorithm could run at best ([`Machine::floor`]), and the machine's peak. An algorithm with fewer
/// products than the direct sum may pass the peak. The layers that lose the most time are named.
pub fn drawing(network: &str, machine: &Machine, batch: usize, layers: &[LayerTime]) -> String {
    let convolutions = || layers.iter().filter(|layer| layer.step.macs > 0).zip(1..);
    let lost = |layer: &LayerTime| layer.ms * (1.0 - layer.of_floor / 100.0);
    let mut losses: Vec<f64> = convolutions().map(|(layer, _)| lost(layer)).collect();
    losses.sort_by(|a, b| b.total_cmp(a));
    let least = losses.get(NAMED - 1).copied().unwrap_or(0.0);
    let last = losses.len().max(1) as f64;
    let peak = machine.peak_flops / 1e9;
    let mut series = vec![Series::new("the machine's peak", Stroke::Solid, [(1.0, peak), (last, peak)])];
    for (layer, number) in convolutions() {
        let LayerTime { step, gflops, .. } = layer;
        let seconds = machine.floor(step, batch).as_secs_f64();
        let best = 2.0 * step.macs as f64 * batch as f64 / seconds / 1e9;
        let label = (lost(layer) >= least).then(|| step.name.clone());
        let point = Point { x: f64::from(number), y: *gflops, interval: Some([*gflops, best]), label };
        match series.iter_mut().find(|series| series.name == step.algorithm) {
            Some(series) => series.points.push(point),
            None => series.push(Series {
                name: step.algorithm.clone(),
                stroke: Stroke::Points,
                points: vec![point],
            }),
        }
    }
    let x = Axis { label: "convolution, in execution order".into(), whole: true, ..Axis::default() };
    let y = Axis {
        label: "GFLOP/s of the direct sum's arithmetic".into(),
        include: vec![0.0],
        ..Axis::default()
    };
    let title = format!("{network}: bars end at the best that each layer's algorithm can do here");
    LineChart { title, x, y, series, width: 960, height: 420, ..LineChart::default() }.to_document()
}
