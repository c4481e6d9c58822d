//! Batch normalisation.

/// Biased variance and mean of each channel: `[mean, var]`.
pub(crate) fn statistics(x: &[f64], channels: usize) -> [Vec<f64>; 2] {
    let rows = (x.len() / channels) as f64;
    let mut mean = vec![0.0; channels];
    for (index, value) in x.iter().enumerate() {
        mean[index % channels] += value / rows;
    }
    let mut var = vec![0.0; channels];
    for (index, value) in x.iter().enumerate() {
        var[index % channels] += (value - mean[index % channels]).powi(2) / rows;
    }
    [mean, var]
}

/// What the layer computes in training mode.
pub(crate) struct BatchNorm {
    pub(crate) x: Vec<f64>,
    pub(crate) gamma: Vec<f64>,
    pub(crate) beta: Vec<f64>,
    pub(crate) epsilon: f64,
    pub(crate) residual: Option<Vec<f64>>,
    pub(crate) relu: bool,
}

/// Gradients of a [`BatchNorm`].
pub(crate) struct Gradients {
    pub(crate) dx: Vec<f64>,
    pub(crate) dgamma: Vec<f64>,
    pub(crate) dbeta: Vec<f64>,
    pub(crate) residual: Vec<f64>,
}

impl BatchNorm {
    pub(crate) fn forward(&self) -> Vec<f64> {
        let channels = self.gamma.len();
        let [mean, var] = statistics(&self.x, channels);
        let value = |(index, x): (usize, &f64)| {
            let c = index % channels;
            let normalised = (x - mean[c]) / (var[c] + self.epsilon).sqrt();
            let residual = self.residual.as_ref().map_or(0.0, |residual| residual[index]);
            let y = normalised * self.gamma[c] + self.beta[c] + residual;
            if self.relu && y < 0.0 { 0.0 } else { y }
        };
        self.x.iter().enumerate().map(value).collect()
    }

    /// By the chain rule through mean and variance, step by step as in Ioffe & Szegedy 2015, section 3.
    pub(crate) fn backward(&self, dy: &[f64]) -> Gradients {
        let (channels, y) = (self.gamma.len(), self.forward());
        let rows = (self.x.len() / channels) as f64;
        let [mean, var] = statistics(&self.x, channels);
        let zeros = || vec![0.0; channels];
        let (mut dvar, mut dmean, mut dgamma, mut dbeta) = (zeros(), zeros(), zeros(), zeros());
        let g: Vec<f64> =
            dy.iter().zip(&y).map(|(&dy, &y)| if self.relu && y <= 0.0 { 0.0 } else { dy }).collect();
        for (index, (x, g)) in self.x.iter().zip(&g).enumerate() {
            let c = index % channels;
            let deviation = (var[c] + self.epsilon).sqrt();
            let dnormalised = g * self.gamma[c];
            dvar[c] -= dnormalised * (x - mean[c]) / (2.0 * deviation.powi(3));
            dmean[c] -= dnormalised / deviation;
            dgamma[c] += g * (x - mean[c]) / deviation;
            dbeta[c] += g;
        }
        let dx = self.x.iter().zip(&g).enumerate().map(|(index, (x, g))| {
            let c = index % channels;
            let deviation = (var[c] + self.epsilon).sqrt();
            g * self.gamma[c] / deviation + dvar[c] * 2.0 * (x - mean[c]) / rows + dmean[c] / rows
        });
        Gradients { dx: dx.collect(), dgamma, dbeta, residual: g }
    }
}
