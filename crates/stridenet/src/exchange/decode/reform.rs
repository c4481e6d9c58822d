//! Operators that move, cut, repeat or pad activations.

use super::operator::pooled;
use super::{Decoder, Form, LARGEST, Value, ints, shown};
use crate::exchange::dag::Op;
use crate::kernels::conv::Window;
use crate::weights::onnx::{Attribute, Node};

impl<'a> Decoder<'a> {
    /// A change of shape that keeps the channels of one pixel; `None` and −1 fit what is left.
    pub(super) fn reform(&mut self, node: &Node, target: &[Option<i64>]) -> Result<Value<'a>, String> {
        let (step, form) = self.input_step(node)?;
        let channels = form.channels();
        let refuse = || {
            format!(
                "gives the shape {} to one of {}, expected one pixel",
                shown(target),
                shown(&form.sizes())
            )
        };
        if matches!(form, Form::Map { .. }) || target.is_empty() {
            return Err(refuse());
        }
        let is = |index: usize, size: usize| match target[index] {
            None | Some(-1) => true,
            Some(found) => found == size as i64,
        };
        // 0 keeps the size, which for the first axis is the batch.
        let batch = matches!(target[0], None | Some(-1 | 0)) || target[0] == self.batch;
        let form = match target.len() {
            2 if is(1, channels) => Form::Flat { channels },
            4 if is(1, channels) && target[2..] == [Some(1), Some(1)] => Form::Pixel { channels },
            3 if is(2, channels) && target[1] == Some(1) => Form::Sequence { channels },
            _ => return Err(refuse()),
        };
        if batch { Ok(Value::Activation { step, form }) } else { Err(refuse()) }
    }

    pub(super) fn squeeze(&mut self, node: &Node) -> Result<Value<'a>, String> {
        let (step, form) = self.input_step(node)?;
        let channels = form.channels();
        let squeeze = node.operator == "Squeeze";
        let mut axes = self.axes(node)?.unwrap_or_default();
        let rank = form.sizes().len() as i64 + if squeeze { 0 } else { axes.len() as i64 };
        axes.iter_mut().filter(|axis| **axis < 0).for_each(|axis| *axis += rank);
        axes.sort_unstable();
        let form = match (form, squeeze, &axes[..]) {
            (Form::Pixel { .. }, true, [2, 3]) => Form::Flat { channels },
            (Form::Flat { .. }, false, [2, 3]) => Form::Pixel { channels },
            (Form::Flat { .. }, false, [1]) => Form::Sequence { channels },
            (Form::Sequence { .. }, true, [1]) => Form::Flat { channels },
            _ => return Err(format!("changes the axes {axes:?} of the shape {}", shown(&form.sizes()))),
        };
        Ok(Value::Activation { step, form })
    }

    /// Channels repeated over the pixels that they weigh.
    pub(super) fn expand(&mut self, node: &Node) -> Result<Value<'a>, String> {
        match self.input_step(node)? {
            (step, Form::Pixel { channels }) => Ok(Value::Gate { step, channels }),
            (_, form) => Err(format!("repeats the shape {}, expected one pixel", shown(&form.sizes()))),
        }
    }

    pub(super) fn pad(&mut self, node: &Node) -> Result<Value<'a>, String> {
        let (step, channels, size) = self.map(node)?;
        let pads = match ints(node, "pads")? {
            Some(pads) => pads,
            None => self.constant(node, 1)?.ints()?,
        };
        let value = match (node.attributes.get("value"), self.optional(node, 2)?) {
            (Some(Attribute::Float(value)), _) => f64::from(*value),
            (_, None) => 0.0,
            (_, Some(constant)) => constant.scalar().ok_or("pads with something else than a number")?,
        };
        let reflect = matches!(node.attributes.get("mode"), Some(Attribute::Text(mode)) if mode == "reflect");
        let form = Form::Map { channels, size };
        match (reflect, &pads[..]) {
            (true, [0, 0, 1, 1, 0, 0, 1, 1]) => Ok(Value::Reflected { step, form }),
            (false, &[0, 0, 0, 0, 0, 0, down, across])
                if value == 0.0 && down == across && (1..8).contains(&down) =>
            {
                Ok(Value::Extended { step, form, pixels: down as usize })
            }
            (false, &[0, before, 0, 0, 0, after, 0, 0]) if value == 0.0 => {
                let count = |count: i64| usize::try_from(count).ok().filter(|_| count <= LARGEST);
                let (Some(before), Some(after)) = (count(before), count(after)) else {
                    return Err(format!("adds {before} and {after} channels"));
                };
                let step = self.dag.push(node.label(), Op::PadChannels { before, after }, &[step]);
                Ok(Value::Activation { step, form: Form::Map { channels: channels + before + after, size } })
            }
            _ => Err(format!("pads by {pads:?} in a way that no layer here does")),
        }
    }

    pub(super) fn subsample(&mut self, node: &Node) -> Result<Value<'a>, String> {
        // Exporters cut one axis after the other.
        let (step, form, before) = match self.operand(node, 0)? {
            Value::Cut { step, form, steps } => (step, form, steps),
            _ => {
                let (step, form) = self.input_step(node)?;
                (step, form, [1, 1])
            }
        };
        let Form::Map { channels, size } = form else { return Err("cuts one pixel".to_owned()) };
        let [starts, ends, steps] = self.slice(node, 4)?;
        let whole = |axis: usize, size: Option<usize>| {
            let end = ends[axis];
            starts[axis] == 0 && (end >= i64::from(i32::MAX) || size.is_some_and(|size| end >= size as i64))
        };
        let [height, width] = size.map_or([None; 2], |size| size.map(Some));
        let all = whole(0, None) && whole(1, Some(channels)) && whole(2, height) && whole(3, width);
        let &[1, 1, down, across] = &steps[..] else {
            return Err("leaves out images or channels".to_owned());
        };
        let steps = [before[0].saturating_mul(down), before[1].saturating_mul(across)];
        if !all || !steps.iter().all(|step| (1..=LARGEST).contains(step)) {
            return Err("cuts activations, expected every n-th pixel of all".to_owned());
        }
        match steps {
            [1, 1] => Ok(Value::Activation { step, form }),
            [down, across] if down == across => {
                let stride = down as usize;
                let form = pooled(form, Window { kernel: 1, stride, padding: 0, dilation: 1 })?;
                let step = self.dag.push(node.label(), Op::Subsample { stride }, &[step]);
                Ok(Value::Activation { step, form })
            }
            steps => Ok(Value::Cut { step, form, steps }),
        }
    }
}
