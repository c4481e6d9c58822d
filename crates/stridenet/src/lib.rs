//! Residual networks that down-sample with stride 2 (He et al. 2015): train, evaluate and predict on CPUs.
#![forbid(unsafe_code)]
