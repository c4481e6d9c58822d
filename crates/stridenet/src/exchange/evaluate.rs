//! Computes a graph operator by operator, as the ONNX standard describes each.
//!
//! This is the oracle of written files: it knows neither networks nor steps, so that what was written is checked by what its
//! nodes mean. <https://onnx.ai/onnx/operators/>

use crate::kernels::Context;
use crate::kernels::gemm::{Epilogue, PackedMatrix, multiply};
use crate::weights::onnx::{Attribute, Node, OnnxModel};
use std::collections::HashMap;
use std::path::Path;

/// A value: sizes and numbers in row-major order.
#[derive(Debug, Clone)]
pub(super) struct Array {
    pub(super) shape: Vec<usize>,
    pub(super) data: Vec<f32>,
}

/// A window along one axis.
#[derive(Debug, Clone, Copy)]
struct Axis {
    kernel: usize,
    stride: usize,
    /// Positions added before and after.
    pads: [usize; 2],
    dilation: usize,
    /// Whether a window that reaches beyond the end is kept.
    ceil: bool,
}

impl Axis {
    fn output(self, input: usize) -> Option<usize> {
        let reach = self.dilation * (self.kernel - 1) + 1;
        let room = (input + self.pads[0] + self.pads[1]).checked_sub(reach);
        match room {
            Some(room) if self.ceil => Some(room.div_ceil(self.stride) + 1),
            Some(room) => Some(room / self.stride + 1),
            // A window larger than the input is kept where it begins inside.
            None => self.ceil.then_some(1),
        }
    }

    fn source(self, output: usize, tap: usize, input: usize) -> Option<usize> {
        (output * self.stride + tap * self.dilation).checked_sub(self.pads[0]).filter(|&at| at < input)
    }
}

/// Computes `output` of the graph for images `[N, C, H, W]`; `path` is the file, for constants beside it.
pub(super) fn evaluate(cx: &Context, path: &Path, model: &OnnxModel, images: Array) -> Result<Array, String> {
    let graph = &model.graph;
    let (Some(input), [output]) = (graph.inputs.first(), &graph.outputs[..]) else {
        return Err("the graph has not one input and one output".to_owned());
    };
    let mut last = HashMap::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        last.extend(node.inputs.iter().map(|name| (name.as_str(), index)));
    }
    let mut values = HashMap::from([(input.name.as_str(), images)]);
    for (index, node) in graph.nodes.iter().enumerate() {
        let run = Run { cx, path, model, values: &values, node };
        let computed =
            run.node().map_err(|problem| format!("{} ({}): {problem}", node.label(), node.operator))?;
        let [name] = &node.outputs[..] else { return Err(format!("{} has not one output", node.label())) };
        values.insert(name, computed);
        values.retain(|name, _| *name == output || last.get(name).is_some_and(|&reader| reader > index));
    }
    values.remove(output.as_str()).ok_or_else(|| format!("nothing makes the output {output}"))
}

/// One node with everything it may read.
struct Run<'r> {
    cx: &'r Context,
    path: &'r Path,
    model: &'r OnnxModel<'r>,
    values: &'r HashMap<&'r str, Array>,
    node: &'r Node<'r>,
}

impl Run<'_> {
    fn node(&self) -> Result<Array, String> {
        match self.node.operator.as_str() {
            "Conv" => self.conv(),
            "BatchNormalization" => self.batch_norm(),
            "Relu" => self.each(|value| value.max(0.0)),
            "Sigmoid" => self.each(|value| 1.0 / (1.0 + (-value).exp())),
            "MaxPool" => self.pool(|window| window.iter().copied().fold(f32::NEG_INFINITY, f32::max)),
            // Padding does not count here: count_include_pad is 0.
            "AveragePool" if self.int("count_include_pad", 0)? == 0 => {
                self.pool(|window| window.iter().sum::<f32>() / window.len() as f32)
            }
            "GlobalAveragePool" => self.global_average_pool(),
            "Add" => self.both(|a, b| a + b),
            "Mul" => self.both(|a, b| a * b),
            "Gemm" => self.gemm(),
            "Flatten" => {
                let Array { shape, data } = self.array(0)?;
                Ok(Array { shape: vec![shape[0], shape[1..].iter().product()], data })
            }
            "Reshape" => self.reshape(),
            "Pad" => self.pad(),
            "Slice" => self.slice(),
            _ => Err("is not computed here".to_owned()),
        }
    }

    fn input(&self, index: usize) -> Result<&str, String> {
        self.node.input(index).ok_or_else(|| format!("input {index} is not given"))
    }

    fn array(&self, index: usize) -> Result<Array, String> {
        let name = self.input(index)?;
        if let Some(value) = self.values.get(name) {
            return Ok(value.clone());
        }
        let tensor =
            self.model.graph.initializers.get(name).ok_or_else(|| format!("nothing makes {name}"))?;
        Ok(Array { shape: tensor.shape.clone(), data: tensor.f32_values(self.path)? })
    }

    /// A feature map `[N, C, H, W]`.
    fn map(&self, index: usize) -> Result<([usize; 4], Vec<f32>), String> {
        let Array { shape, data } = self.array(index)?;
        let found = format!("input {index} has the shape {shape:?}, expected four sizes");
        Ok((shape.try_into().map_err(|_| found)?, data))
    }

    fn list(&self, index: usize) -> Result<Vec<i64>, String> {
        let name = self.input(index)?;
        let tensor =
            self.model.graph.initializers.get(name).ok_or_else(|| format!("{name} is no constant"))?;
        tensor.i64_values(self.path)
    }

    fn int(&self, name: &str, usual: i64) -> Result<i64, String> {
        match self.node.attributes.get(name) {
            None => Ok(usual),
            Some(Attribute::Int(value)) => Ok(*value),
            Some(other) => Err(format!("{name} is {other:?}")),
        }
    }

    /// Sizes along the spatial axes.
    fn sizes(&self, name: &str, usual: Vec<usize>) -> Result<Vec<usize>, String> {
        match self.node.attributes.get(name) {
            None => Ok(usual),
            Some(Attribute::Ints(values)) => Ok(values.iter().map(|&value| value as usize).collect()),
            Some(other) => Err(format!("{name} is {other:?}")),
        }
    }

    fn axes(&self, kernel: &[usize]) -> Result<Vec<Axis>, String> {
        let ones = vec![1; kernel.len()];
        let (stride, dilation) = (self.sizes("strides", ones.clone())?, self.sizes("dilations", ones)?);
        let pads = self.sizes("pads", vec![0; 2 * kernel.len()])?;
        let ceil = self.int("ceil_mode", 0)? == 1;
        let axis = |index: usize| Axis {
            kernel: kernel[index],
            stride: stride[index],
            pads: [pads[index], pads[index + kernel.len()]],
            dilation: dilation[index],
            ceil,
        };
        Ok((0..kernel.len()).map(axis).collect())
    }

    fn each(&self, value: impl Fn(f32) -> f32) -> Result<Array, String> {
        let Array { shape, data } = self.array(0)?;
        Ok(Array { shape, data: data.into_iter().map(value).collect() })
    }

    /// A convolution over one or two axes: weights times the columns of what each output sees.
    fn conv(&self) -> Result<Array, String> {
        let (input, weight) = (self.array(0)?, self.array(1)?);
        let bias = self.node.input(2).map(|_| self.array(2)).transpose()?;
        // One axis is two with a single row.
        let flat = |shape: &[usize]| match *shape {
            [n, c, w] => Ok([n, c, 1, w]),
            [n, c, h, w] => Ok([n, c, h, w]),
            _ => Err(format!("has the shape {shape:?}")),
        };
        let ([images, channels, height, width], [outputs, inputs, ..]) =
            (flat(&input.shape)?, flat(&weight.shape)?);
        let mut axes = self.axes(&weight.shape[2..])?;
        if axes.len() == 1 {
            axes.insert(0, Axis { kernel: 1, stride: 1, pads: [0, 0], dilation: 1, ceil: false });
        }
        let (rows, columns) = (axes[0].output(height), axes[1].output(width));
        let (Some(rows), Some(columns)) = (rows, columns) else {
            return Err("does not fit its input".to_owned());
        };
        let groups = self.int("group", 1)? as usize;
        if groups == 0 || inputs * groups != channels || outputs % groups != 0 {
            return Err(format!(
                "{outputs} outputs and {channels} channels do not divide into {groups} groups"
            ));
        }
        let (taps, pixels, group_out) = (axes[0].kernel * axes[1].kernel, rows * columns, outputs / groups);
        let depth = inputs * taps;
        let mut data = vec![0.0; images * outputs * pixels];
        for (part, y) in data.chunks_exact_mut(group_out * pixels).enumerate() {
            let (image, group) = (part / groups, part % groups);
            let x = &input.data[(image * channels + group * inputs) * height * width..];
            let seen = PackedMatrix::new(self.cx.level(), depth, pixels, |k, pixel| {
                let (channel, tap) = (k / taps, k % taps);
                let row = axes[0].source(pixel / columns, tap / axes[1].kernel, height);
                let column = axes[1].source(pixel % columns, tap % axes[1].kernel, width);
                row.zip(column).map_or(0.0, |(row, column)| x[(channel * height + row) * width + column])
            });
            let weight = &weight.data[group * group_out * depth..][..group_out * depth];
            multiply(self.cx, group_out, weight, &seen, Epilogue::default(), y);
            if let Some(bias) = &bias {
                for (y, bias) in y.chunks_exact_mut(pixels).zip(&bias.data[group * group_out..]) {
                    y.iter_mut().for_each(|value| *value += bias);
                }
            }
        }
        let spatial: &[usize] = if input.shape.len() == 3 { &[columns] } else { &[rows, columns] };
        Ok(Array { shape: [&[images, outputs][..], spatial].concat(), data })
    }

    fn batch_norm(&self) -> Result<Array, String> {
        let ([_, channels, height, width], mut data) = self.map(0)?;
        let [weight, bias, mean, var] = [1, 2, 3, 4].map(|index| self.array(index));
        let (weight, bias, mean, var) = (weight?.data, bias?.data, mean?.data, var?.data);
        let epsilon = match self.node.attributes.get("epsilon") {
            None => 1e-5,
            Some(Attribute::Float(epsilon)) => *epsilon,
            Some(other) => return Err(format!("epsilon is {other:?}")),
        };
        for (index, map) in data.chunks_exact_mut(height * width).enumerate() {
            let channel = index % channels;
            let scale = f64::from(weight[channel]) / (f64::from(var[channel]) + f64::from(epsilon)).sqrt();
            let shift = f64::from(bias[channel]) - f64::from(mean[channel]) * scale;
            map.iter_mut().for_each(|value| *value = (f64::from(*value) * scale + shift) as f32);
        }
        Ok(Array { shape: self.map(0)?.0.to_vec(), data })
    }

    /// A pool; `reduce` sees what lies inside the map.
    fn pool(&self, reduce: impl Fn(&[f32]) -> f32) -> Result<Array, String> {
        let ([images, channels, height, width], data) = self.map(0)?;
        let axes = self.axes(&self.sizes("kernel_shape", Vec::new())?)?;
        let &[down, across] = &axes[..] else { return Err("is no pool over two axes".to_owned()) };
        let (Some(rows), Some(columns)) = (down.output(height), across.output(width)) else {
            return Err("does not fit its input".to_owned());
        };
        let mut pooled = Vec::with_capacity(images * channels * rows * columns);
        let mut window = Vec::new();
        for map in data.chunks_exact(height * width) {
            for pixel in 0..rows * columns {
                window.clear();
                for tap in 0..down.kernel * across.kernel {
                    let row = down.source(pixel / columns, tap / across.kernel, height);
                    let column = across.source(pixel % columns, tap % across.kernel, width);
                    window.extend(row.zip(column).map(|(row, column)| map[row * width + column]));
                }
                pooled.push(reduce(&window));
            }
        }
        Ok(Array { shape: vec![images, channels, rows, columns], data: pooled })
    }

    fn global_average_pool(&self) -> Result<Array, String> {
        let ([images, channels, height, width], data) = self.map(0)?;
        let mean = |map: &[f32]| (map.iter().copied().map(f64::from).sum::<f64>() / map.len() as f64) as f32;
        let data = data.chunks_exact(height * width).map(mean).collect();
        Ok(Array { shape: vec![images, channels, 1, 1], data })
    }

    /// Two inputs of the same shape, or one of them with a value for each channel.
    fn both(&self, of: impl Fn(f32, f32) -> f32) -> Result<Array, String> {
        let (a, b) = (self.array(0)?, self.array(1)?);
        let data = if a.shape == b.shape {
            a.data.iter().zip(&b.data).map(|(&a, &b)| of(a, b)).collect()
        } else if a.shape.len() == 4 && b.shape == [a.shape[0], a.shape[1], 1, 1] {
            let pixels = a.shape[2] * a.shape[3];
            a.data.iter().enumerate().map(|(index, &a)| of(a, b.data[index / pixels])).collect()
        } else {
            return Err(format!("the shapes {:?} and {:?} do not fit", a.shape, b.shape));
        };
        Ok(Array { shape: a.shape, data })
    }

    fn gemm(&self) -> Result<Array, String> {
        let (x, weight, bias) = (self.array(0)?, self.array(1)?, self.array(2)?);
        let (&[images, inputs], &[outputs, same]) = (&x.shape[..], &weight.shape[..]) else {
            return Err(format!("multiplies the shapes {:?} and {:?}", x.shape, weight.shape));
        };
        if self.int("transB", 0)? != 1 || inputs != same || self.node.attributes.len() != 1 {
            return Err("has not the form x·Wᵀ + b".to_owned());
        }
        let dot =
            |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
        let mut data = Vec::with_capacity(images * outputs);
        for x in x.data.chunks_exact(inputs) {
            let rows = weight.data.chunks_exact(inputs).zip(&bias.data);
            data.extend(rows.map(|(w, &bias)| (dot(x, w) + f64::from(bias)) as f32));
        }
        Ok(Array { shape: vec![images, outputs], data })
    }

    fn reshape(&self) -> Result<Array, String> {
        let Array { shape, data } = self.array(0)?;
        let target = self.list(1)?;
        let known = |(index, &size): (usize, &i64)| match size {
            -1 => Some(1),
            0 => shape.get(index).copied(),
            size => usize::try_from(size).ok(),
        };
        let known: usize = target.iter().enumerate().filter_map(known).product();
        let size = |(index, &size): (usize, &i64)| match size {
            -1 => data.len().checked_div(known),
            0 => shape.get(index).copied(),
            size => usize::try_from(size).ok(),
        };
        match target.iter().enumerate().map(size).collect::<Option<Vec<_>>>() {
            Some(shape) if shape.iter().product::<usize>() == data.len() => Ok(Array { shape, data }),
            _ => Err(format!("the shape {shape:?} does not become {target:?}")),
        }
    }

    fn pad(&self) -> Result<Array, String> {
        let ([images, channels, height, width], data) = self.map(0)?;
        let mode = self.node.attributes.get("mode");
        let constant = match mode {
            None => true,
            Some(Attribute::Text(mode)) if mode == "constant" => true,
            Some(Attribute::Text(mode)) if mode == "reflect" => false,
            Some(other) => return Err(format!("mode is {other:?}")),
        };
        let sizes = [images, channels, height, width];
        let pads = self.list(1)?;
        let [before, after] = [&pads[..4], &pads[4..]];
        let padded: Vec<usize> =
            (0..4).map(|axis| sizes[axis] + (before[axis] + after[axis]) as usize).collect();
        // Where along an axis a padded position reads.
        let source = |axis: usize, at: usize| {
            let (place, size) = (at as i64 - before[axis], sizes[axis] as i64);
            let place = match place {
                place if constant || (0..size).contains(&place) => place,
                place if place < 0 => -place,
                place => 2 * (size - 1) - place,
            };
            usize::try_from(place).ok().filter(|&place| place < sizes[axis])
        };
        let mut values = Vec::with_capacity(padded.iter().product());
        for index in 0..padded.iter().product() {
            let (row, column) = (index / padded[3], index % padded[3]);
            let (map, row) = (row / padded[2], row % padded[2]);
            let places =
                [source(0, map / padded[1]), source(1, map % padded[1]), source(2, row), source(3, column)];
            values.push(match places {
                [Some(n), Some(c), Some(h), Some(w)] => data[((n * channels + c) * height + h) * width + w],
                _ if constant => 0.0,
                _ => return Err("reflects more than there is".to_owned()),
            });
        }
        Ok(Array { shape: padded, data: values })
    }

    fn slice(&self) -> Result<Array, String> {
        let ([images, channels, height, width], data) = self.map(0)?;
        let [starts, ends, axes, steps] = [self.list(1)?, self.list(2)?, self.list(3)?, self.list(4)?];
        let full = i64::from(i32::MAX);
        let (&[down, across], true) =
            (&steps[..], starts == [0, 0] && axes == [2, 3] && ends.iter().all(|&e| e >= full))
        else {
            return Err("cuts otherwise than every n-th pixel".to_owned());
        };
        let (down, across) = (down as usize, across as usize);
        let mut kept = Vec::new();
        for map in data.chunks_exact(height * width) {
            for row in map.chunks_exact(width).step_by(down) {
                kept.extend(row.iter().step_by(across));
            }
        }
        Ok(Array { shape: vec![images, channels, height.div_ceil(down), width.div_ceil(across)], data: kept })
    }
}
