//! Weights for a block's channels that follow from the channels' means: squeeze and excitation (Hu et al. 2017), and
//! efficient channel attention (Wang et al. 2019).

use super::{Linear, Parameter, Workspace};
use crate::Tensor;
use crate::kernels::pool::LinearPool;
use crate::kernels::{Context, gate};

/// A gate for one input size.
#[derive(Debug)]
pub struct Gate {
    /// The mean of each channel.
    pub pool: LinearPool,
    /// What follows.
    pub kind: GateKind,
}

/// How the weights follow from the means.
#[derive(Debug)]
pub enum GateKind {
    /// Two linear layers with a ReLU between, and a sigmoid.
    Se(Box<[Linear; 2]>),
    /// A convolution along the channels, and a sigmoid.
    Eca(Parameter),
}

/// One tap that changes nothing: the sigmoid alone.
const ALONE: [f32; 1] = [1.0];

/// What the backward pass needs.
#[derive(Debug)]
pub struct GateSaved {
    /// The channels' means, `[N, 1, 1, C]`.
    means: Tensor,
    /// After the first linear layer and its ReLU, `[N, 1, 1, C']`, and after the second, `[N, 1, 1, C]`.
    layers: Option<[Tensor; 2]>,
    /// The weights, `[N, 1, 1, C]`.
    weights: Tensor,
}

impl GateSaved {
    /// The weights, `[N, 1, 1, C]`.
    pub fn weights(&self) -> &Tensor {
        &self.weights
    }

    /// Gives everything back.
    pub fn discard(self, workspace: &mut Workspace) {
        let GateSaved { means, layers, weights } = self;
        for tensor in [means, weights].into_iter().chain(layers.into_iter().flatten()) {
            workspace.give(tensor);
        }
    }
}

impl Gate {
    /// The parameters, in torch's order.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let (layers, taps) = match &self.kind {
            GateKind::Se(layers) => (Some(layers.iter()), None),
            GateKind::Eca(taps) => (None, Some(taps)),
        };
        layers.into_iter().flatten().flat_map(Linear::parameters).chain(taps)
    }

    /// The parameters, in torch's order.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let (layers, taps) = match &mut self.kind {
            GateKind::Se(layers) => (Some(layers.iter_mut()), None),
            GateKind::Eca(taps) => (None, Some(taps)),
        };
        layers.into_iter().flatten().flat_map(Linear::parameters_mut).chain(taps)
    }

    /// Feature maps `[N, H, W, C]` → weights `[N, 1, 1, C]`.
    pub fn forward(&self, cx: &Context, workspace: &mut Workspace, x: &Tensor) -> GateSaved {
        let mut means = workspace.tensor([x.batch(), 1, 1, x.channels()]);
        self.pool.forward(cx, x.data(), means.data_mut());
        let mut weights = workspace.tensor(means.shape());
        let layers = match &self.kind {
            GateKind::Se(layers) => {
                let [narrow, wide] = &**layers;
                let hidden = narrow.forward(cx, workspace, &means, true);
                let logits = wide.forward(cx, workspace, &hidden, false);
                gate::sigmoid_of_channels(cx, x.channels(), &ALONE, logits.data(), weights.data_mut());
                Some([hidden, logits])
            }
            GateKind::Eca(taps) => {
                let (from, to) = (means.data(), weights.data_mut());
                gate::sigmoid_of_channels(cx, x.channels(), &taps.value, from, to);
                None
            }
        };
        GateSaved { means, layers, weights }
    }

    /// The parameters' gradients and the means', from the weights'; both are given up.
    pub fn backward(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        saved: GateSaved,
        dweights: Tensor,
    ) -> Tensor {
        let GateSaved { means, layers, weights } = saved;
        let channels = means.channels();
        let mut dmeans = workspace.tensor(means.shape());
        match (&mut self.kind, layers) {
            (GateKind::Se(parts), Some([hidden, logits])) => {
                let [narrow, wide] = &mut **parts;
                let mut dlogits = workspace.tensor(logits.shape());
                let known = [logits.data(), weights.data(), dweights.data()];
                let (mut alone, to) = (ALONE, dlogits.data_mut());
                gate::sigmoid_of_channels_backward(channels, &ALONE, known, &mut alone, to);
                let mut dhidden = wide.backward(cx, workspace, &hidden, &dlogits);
                let cut = dhidden.data_mut().iter_mut().zip(hidden.data());
                cut.filter(|(_, hidden)| **hidden <= 0.0).for_each(|(dhidden, _)| *dhidden = 0.0);
                let dx = narrow.backward(cx, workspace, &means, &dhidden);
                workspace.give(std::mem::replace(&mut dmeans, dx));
                [hidden, logits, dlogits, dhidden].into_iter().for_each(|tensor| workspace.give(tensor));
            }
            (GateKind::Eca(taps), _) => {
                let known = [means.data(), weights.data(), dweights.data()];
                let (taps, dtaps) = taps.value_and_grad();
                gate::sigmoid_of_channels_backward(channels, taps, known, dtaps, dmeans.data_mut());
            }
            (GateKind::Se(_), None) => unreachable!("the layers' outputs are kept"),
        }
        [means, weights, dweights].into_iter().for_each(|tensor| workspace.give(tensor));
        dmeans
    }
}
