//! Matrix products and convolutions against the measured multiply-add peak.
//!
//! `cargo bench -p stridenet-kernels --bench gemm [-- THREADS [PART-OF-A-NAME]]`, with `STRIDENET_LEVEL` to force a level.
//! Some answers of each product are checked before it is timed; peak and product are measured in turn, and the medians
//! are compared.

use std::sync::OnceLock;
use std::time::Instant;
use stridenet_kernels::conv::{Conv, ConvGeometry, ConvScratch, FastConv, FastScratch, Tiling};
use stridenet_kernels::gemm::{self, Epilogue, PackedMatrix};
use stridenet_kernels::{Context, Level, Operands, roofline};

const ROUNDS: usize = 9;

/// What the names of the measured products must contain.
static FILTER: OnceLock<String> = OnceLock::new();

fn wanted(name: &str) -> bool {
    FILTER.get().is_none_or(|part| name.contains(part.as_str()))
}

/// Values in −1..1 that look random and are the same every time.
fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Times `work` (of `macs` multiply-adds a call) and the peak in turn and prints a line.
fn report(cx: &Context, name: &str, macs: f64, mut work: impl FnMut()) {
    work();
    let start = Instant::now();
    work();
    let calls = (0.05 / start.elapsed().as_secs_f64()).ceil().max(1.0) as usize;
    let (mut rates, mut peaks) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        peaks.push(roofline::peak_flops(cx, 1));
        let start = Instant::now();
        (0..calls).for_each(|_| work());
        rates.push(2.0 * macs * calls as f64 / start.elapsed().as_secs_f64());
    }
    let (rate, peak) = (median(rates), median(peaks));
    println!("{name:<34} {:8.1} GFLOP/s  peak {:7.1}  {:5.1} %", rate / 1e9, peak / 1e9, 100.0 * rate / peak);
}

fn product(cx: &Context, [m, k, n]: [usize; 3]) {
    let name = format!("gemm M={m} K={k} N={n}");
    if !wanted(&name) {
        return;
    }
    let (a, b) = (values(m * k, 1), values(k * n, 2));
    let packed = PackedMatrix::new(cx.level(), k, n, |row, column| b[row * n + column]);
    let mut c = vec![0.0; m * n];
    gemm::multiply(cx, m, &a, &packed, Epilogue::default(), &mut c);
    for (i, j) in [(0, 0), (m / 2, n / 3), (m - 1, n - 1)] {
        let exact: f64 = (0..k).map(|x| f64::from(a[i * k + x]) * f64::from(b[x * n + j])).sum();
        assert!((f64::from(c[i * n + j]) - exact).abs() < 1e-4 * (k as f64).sqrt(), "wrong product");
    }
    report(cx, &name, (m * k * n) as f64, || {
        gemm::multiply(cx, m, &a, &packed, Epilogue::default(), &mut c);
    });
}

/// One output of a convolution in f64.
fn output(g: &ConvGeometry, size: usize, out: [usize; 2], index: usize, x: &[f32], weight: &[f32]) -> f64 {
    let (pixel, channel) = (index / g.out_channels, index % g.out_channels);
    let (image, oy, ox) = (pixel / (out[0] * out[1]), pixel / out[1] % out[0], pixel % out[1]);
    let mut sum = 0.0;
    for (ky, kx) in (0..g.kernel[0]).flat_map(|ky| (0..g.kernel[1]).map(move |kx| (ky, kx))) {
        let source = g.window(0).source(oy, ky, size).zip(g.window(1).source(ox, kx, size));
        let Some((iy, ix)) = source else { continue };
        for i in 0..g.in_channels {
            let x = x[((image * size + iy) * size + ix) * g.in_channels + i];
            let w = weight[((ky * g.kernel[1] + kx) * g.in_channels + i) * g.out_channels + channel];
            sum += f64::from(x) * f64::from(w);
        }
    }
    sum
}

fn convolution(cx: &Context, geometry: ConvGeometry, size: usize, batch: usize) {
    for operands in [Operands::F32, Operands::Bf16] {
        direct(cx, operands, geometry, size, batch);
    }
}

fn direct(cx: &Context, operands: Operands, geometry: ConvGeometry, size: usize, batch: usize) {
    let ConvGeometry { kernel: [kernel, _], stride: [stride, _], in_channels, out_channels, .. } = geometry;
    let kind = if operands == Operands::F32 { "direct" } else { "bf16" };
    let name = format!("{kind} {kernel}x{kernel} s{stride} {in_channels}->{out_channels} @{size} [{batch}]");
    if !wanted(&name) {
        return;
    }
    let conv = Conv::new(cx.level(), geometry, [size; 2]).expect("a real layer's shape");
    let [height, width] = conv.output();
    let x = values(batch * size * size * geometry.in_channels, 3);
    let mut y = values(batch * height * width * geometry.out_channels, 4);
    let weight = values(geometry.weight_len(), 5);
    let forward = conv.pack_forward(cx, operands, &weight);
    let backward = conv.pack_backward(cx, operands, &weight);
    let mut scratch = ConvScratch::default();
    conv.forward(cx, &x, &forward, Epilogue::default(), &mut scratch, &mut y);
    let unit = if operands == Operands::F32 { 1e-4 } else { 4e-3 };
    for index in [0, y.len() / 2 + 1, y.len() - 1] {
        let exact = output(&geometry, size, [height, width], index, &x, &weight);
        let bound = unit * ((geometry.taps() * in_channels) as f64).sqrt();
        assert!((f64::from(y[index]) - exact).abs() < bound, "wrong output");
    }
    let macs = (batch * height * width * geometry.weight_len()) as f64;
    report(cx, &format!("{name} forward"), macs, || {
        conv.forward(cx, &x, &forward, Epilogue::default(), &mut scratch, &mut y);
    });
    let mut dx = vec![0.0; x.len()];
    report(cx, &format!("{name} grad_input"), macs, || {
        conv.grad_input(cx, &y, &backward, Epilogue::default(), &mut scratch, &mut dx);
    });
    let mut dw = vec![0.0; weight.len()];
    report(cx, &format!("{name} grad_weight"), macs, || {
        conv.grad_weight(cx, operands, &x, &y, &mut scratch, &mut dw);
    });
}

/// A fast convolution's forward pass; its rate is that of the direct sum, so it may pass the peak.
fn fast(cx: &Context, tiling: Tiling, geometry: ConvGeometry, size: usize, batch: usize) {
    let (inputs, outputs) = (geometry.in_channels, geometry.out_channels);
    let name = format!("fast {tiling:?} {inputs}->{outputs} @{size} [{batch}]");
    if !wanted(&name) {
        return;
    }
    let conv = FastConv::new(cx.level(), tiling, geometry, [size; 2]).expect("a real layer's shape");
    let [height, width] = conv.output();
    let x = values(batch * size * size * geometry.in_channels, 3);
    let mut y = values(batch * height * width * geometry.out_channels, 4);
    let weight = values(geometry.weight_len(), 5);
    let packed = conv.pack(cx, &weight);
    let mut scratch = FastScratch::default();
    conv.forward(cx, &x, &packed, Epilogue::default(), &mut scratch, &mut y);
    for index in [0, y.len() / 2 + 1, y.len() - 1] {
        let exact = output(&geometry, size, [height, width], index, &x, &weight);
        let bound = 1e-4 * (geometry.taps() as f64 * 64.0).sqrt();
        assert!((f64::from(y[index]) - exact).abs() < bound, "wrong output");
    }
    let macs = (batch * height * width * geometry.weight_len()) as f64;
    report(cx, &name, macs, || {
        conv.forward(cx, &x, &packed, Epilogue::default(), &mut scratch, &mut y);
    });
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let threads = arguments.first().and_then(|text| text.parse().ok()).unwrap_or(2);
    if let Some(part) = arguments.get(1) {
        FILTER.get_or_init(|| part.clone());
    }
    let level = Level::from_env().expect("a level of this CPU");
    let cx = Context::new(level, threads);
    println!("level {}, {threads} threads, medians of {ROUNDS} rounds", level.name());
    product(&cx, [3136, 576, 64]);
    product(&cx, [196, 2304, 256]);
    let stem = ConvGeometry { padding: [3; 2], ..ConvGeometry::square(3, 64, 7, 2) };
    convolution(&cx, stem, 224, 4);
    for (channels, size) in [(64, 56), (128, 28), (256, 14), (512, 7)] {
        convolution(&cx, ConvGeometry::square(channels, channels, 3, 1), size, 8);
        convolution(&cx, ConvGeometry::square(channels, 2 * channels, 3, 2), size, 8);
        convolution(&cx, ConvGeometry::square(channels, 4 * channels, 1, 1), size, 8);
        convolution(&cx, ConvGeometry::square(4 * channels, channels, 1, 1), size, 8);
    }
    convolution(&cx, ConvGeometry::square(3, 16, 3, 1), 32, 128);
    for (channels, size) in [(16, 32), (32, 16), (64, 8)] {
        convolution(&cx, ConvGeometry::square(channels, channels, 3, 1), size, 128);
        convolution(&cx, ConvGeometry::square(channels, 2 * channels, 3, 2), size, 128);
    }
    for batch in [1, 8] {
        fast(&cx, Tiling::S7, stem, 224, batch);
        for (channels, size) in [(64, 56), (128, 28), (256, 14), (512, 7)] {
            for (inputs, outputs) in [(4 * channels, channels), (channels, 4 * channels)] {
                fast(&cx, Tiling::Strassen, ConvGeometry::square(inputs, outputs, 1, 1), size, batch);
            }
            for tiling in [Tiling::F2, Tiling::F3, Tiling::F4] {
                fast(&cx, tiling, ConvGeometry::square(channels, channels, 3, 1), size, batch);
            }
            if size > 7 {
                fast(&cx, Tiling::S3, ConvGeometry::square(channels, 2 * channels, 3, 2), size, batch);
            }
        }
    }
    for (channels, size) in [(16, 32), (32, 16), (64, 8)] {
        fast(&cx, Tiling::F4, ConvGeometry::square(channels, channels, 3, 1), size, 4);
        fast(&cx, Tiling::S3, ConvGeometry::square(channels, 2 * channels, 3, 2), size, 4);
    }
}
