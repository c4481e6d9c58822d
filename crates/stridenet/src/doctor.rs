//! How far a model's answers move when images are prepared in one of the common wrong ways.
//!
//! Weights say nothing about how their images were prepared, and a wrong preparation rarely fails: answers are only worse. Where
//! one of these ways gives answers that are surer than those of the model's own configuration, doubt the configuration.

use crate::image::{
    CropMode, Decoding, ImageError, Interpolation, Normalisation, Orientation, Picture, Preprocess, open_with,
};
use crate::kernels::{Context, loss};
use crate::model::Model;
use crate::plan::Plan;
use crate::{Error, Tensor};
use serde::Serialize;
use std::path::Path;

/// What is done to an image apart from its model's preprocessing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slip {
    /// Nothing.
    None,
    /// Red and blue change places.
    SwappedChannels,
    /// Values from 0 to 255 where the constants are for 0 to 1.
    Unscaled,
    /// Scaling down without antialiasing.
    Aliased,
    /// The EXIF orientation is ignored where it is used, and used where it is ignored.
    OtherOrientation,
}

/// A way to prepare images.
#[derive(Debug, Clone)]
struct Way {
    name: &'static str,
    change: String,
    preprocess: Preprocess,
    slip: Slip,
}

/// Examines how a model's images are prepared.
#[derive(Debug)]
pub struct Doctor<'a> {
    model: &'a Model,
    orientation: Orientation,
    /// The model's own, then the others.
    ways: Vec<Way>,
    plan: Plan,
    sums: Vec<Sums>,
    images: usize,
}

#[derive(Debug, Default, Clone)]
struct Sums {
    changed: usize,
    distance: f64,
    farthest: f64,
    confidence: f64,
}

/// What became of the answers under one way to prepare images.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// A short name.
    pub name: &'static str,
    /// What differs from the model's own way.
    pub change: String,
    /// Images whose most probable class is another one.
    pub changed: usize,
    /// The same as a share, in percent.
    pub changed_percent: f64,
    /// Mean total variation distance between the probabilities and those of the model's own way: 0 is none, 1 is all.
    pub distance: f64,
    /// The largest of those distances.
    pub farthest: f64,
    /// Mean probability of the most probable class, in percent.
    pub confidence: f64,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Findings {
    /// Number of images.
    pub count: usize,
    /// The model's own preprocessing.
    pub declared: Preprocess,
    /// Mean probability of the most probable class with it, in percent.
    pub confidence: f64,
    /// The other ways, those that move answers farthest first.
    pub ways: Vec<Finding>,
}

impl Findings {
    /// The ways under which answers are surer than the model's own by more than five hundredths: signs that the declared
    /// preprocessing may be the wrong one.
    pub fn suspects(&self) -> impl Iterator<Item = &Finding> {
        self.ways.iter().filter(|way| way.confidence > self.confidence + 5.0)
    }
}

impl<'a> Doctor<'a> {
    /// Compiles the model for all ways at once. `orientation` is how images are turned properly.
    ///
    /// # Errors
    /// When the network's description is invalid.
    pub fn new(model: &'a Model, orientation: Orientation) -> Result<Self, Error> {
        let ways = ways(&model.preprocess, orientation);
        let plan = model.plan(ways.len())?;
        Ok(Doctor { model, orientation, sums: vec![Sums::default(); ways.len()], ways, plan, images: 0 })
    }

    /// Predicts an image in all ways.
    ///
    /// # Errors
    /// When the file cannot be read or decoded, or the picture cannot be prepared; it does not count then.
    pub fn examine(&mut self, path: &Path) -> Result<(), Error> {
        let other = match self.orientation {
            Orientation::Exif => Orientation::Stored,
            Orientation::Stored => Orientation::Exif,
        };
        let open = |orientation| open_with(path, Decoding::of(self.model.preprocess.channels, orientation));
        let (usual, other) = (open(self.orientation)?, open(other)?);
        let [height, width] = self.model.preprocess.input_size;
        let channels = self.model.preprocess.channels;
        let mut x = Tensor::zeros([self.ways.len(), height, width, channels]);
        for (way, out) in self.ways.iter().zip(x.data_mut().chunks_exact_mut(height * width * channels)) {
            let picture = if way.slip == Slip::OtherOrientation { &other } else { &usual };
            way.prepare(picture, out)?;
        }
        let classes = self.plan.classes();
        let mut y = Tensor::zeros([self.ways.len(), 1, 1, classes]);
        self.plan.run(&x, &mut y)?;
        self.add(&probabilities(self.model.context(), classes, y.data()));
        Ok(())
    }

    /// Adds the probabilities of an image, way after way.
    fn add(&mut self, probabilities: &[Vec<f32>]) {
        self.images += 1;
        let best = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a)));
        let own = &probabilities[0];
        for (sums, row) in self.sums.iter_mut().zip(probabilities) {
            let halves = row.iter().zip(own).map(|(a, b)| f64::from((a - b).abs()) / 2.0);
            let distance: f64 = halves.sum();
            sums.changed += usize::from(best(row) != best(own));
            sums.distance += distance;
            sums.farthest = sums.farthest.max(distance);
            sums.confidence += best(row).map_or(0.0, |class| f64::from(row[class]));
        }
    }

    /// What was found in the images so far.
    pub fn findings(&self) -> Findings {
        let mean = |sum: f64| if self.images == 0 { 0.0 } else { sum / self.images as f64 };
        let findings = self.ways.iter().zip(&self.sums).skip(1).map(|(way, sums)| Finding {
            name: way.name,
            change: way.change.clone(),
            changed: sums.changed,
            changed_percent: 100.0 * mean(sums.changed as f64),
            distance: mean(sums.distance),
            farthest: sums.farthest,
            confidence: 100.0 * mean(sums.confidence),
        });
        let mut ways: Vec<Finding> = findings.collect();
        ways.sort_by(|a, b| b.distance.total_cmp(&a.distance));
        let confidence = 100.0 * mean(self.sums[0].confidence);
        Findings { count: self.images, declared: self.model.preprocess.clone(), confidence, ways }
    }
}

fn probabilities(cx: &Context, classes: usize, logits: &[f32]) -> Vec<Vec<f32>> {
    let mut all = vec![0.0; logits.len()];
    loss::softmax(cx, classes, logits, &mut all);
    all.chunks_exact(classes).map(<[f32]>::to_vec).collect()
}

impl Way {
    /// The network's input, in HWC order.
    fn prepare(&self, picture: &Picture<'_>, out: &mut [f32]) -> Result<(), ImageError> {
        let preprocess = &self.preprocess;
        let mut fitted = preprocess.fit_with(picture, self.slip != Slip::Aliased)?;
        if self.slip == Slip::SwappedChannels {
            fitted.pixels_mut().chunks_exact_mut(3).for_each(|pixel| pixel.swap(0, 2));
        }
        preprocess.normalise(&fitted, out)?;
        if self.slip == Slip::Unscaled {
            // (255 x - mean) / std out of (x - mean) / std.
            for (at, value) in out.iter_mut().enumerate() {
                let channel = at % preprocess.channels;
                let (mean, std) = (preprocess.mean[channel], preprocess.std[channel]);
                *value = 255.0 * *value + 254.0 * mean / std;
            }
        }
        Ok(())
    }
}

/// The declared way, and the wrong ones that differ from it.
fn ways(declared: &Preprocess, orientation: Orientation) -> Vec<Way> {
    let channels = declared.channels;
    let way = |name, change: &str, preprocess: Preprocess, slip| Way {
        name,
        change: change.to_owned(),
        preprocess,
        slip,
    };
    let constants =
        |mean: f32, std: f32| Normalisation { mean: vec![mean; channels], std: vec![std; channels] };
    let with = |Normalisation { mean, std }: Normalisation| Preprocess { mean, std, ..declared.clone() };
    let filtered = |interpolation| Preprocess { interpolation, ..declared.clone() };
    let mut ways = vec![way("declared", "", declared.clone(), Slip::None)];
    if channels == 3 {
        ways.push(way("bgr", "blue and red swapped", declared.clone(), Slip::SwappedChannels));
        ways.push(way("imagenet", "ImageNet's mean and std", with(Normalisation::imagenet()), Slip::None));
    }
    ways.push(way("half", "mean and std 0.5", with(constants(0.5, 0.5)), Slip::None));
    ways.push(way("raw", "values from 0 to 1, no normalisation", with(constants(0.0, 1.0)), Slip::None));
    ways.push(way("unscaled", "values from 0 to 255, then mean and std", declared.clone(), Slip::Unscaled));
    let shape = |crop_mode, crop_pct| Preprocess { crop_mode, crop_pct, ..declared.clone() };
    ways.push(way("squash", "squashed instead of cropped", shape(CropMode::Squash, 1.0), Slip::None));
    ways.push(way("center", "centre crop", shape(CropMode::Center, declared.crop_pct), Slip::None));
    for (name, crop_pct) in [("crop_pct 1.0", 1.0), ("crop_pct 0.875", 0.875)] {
        let change = format!("crop_pct {crop_pct} instead of {}", declared.crop_pct);
        ways.push(way(name, &change, shape(declared.crop_mode, crop_pct), Slip::None));
    }
    ways.push(way("aliased", "resized without antialiasing", declared.clone(), Slip::Aliased));
    ways.push(way("nearest", "resized to the nearest pixel", filtered(Interpolation::Nearest), Slip::None));
    ways.push(way(
        "bilinear",
        "resized by the bilinear filter",
        filtered(Interpolation::Bilinear),
        Slip::None,
    ));
    ways.push(way("bicubic", "resized by the bicubic filter", filtered(Interpolation::Bicubic), Slip::None));
    let (name, change) = match orientation {
        Orientation::Exif => ("no exif", "EXIF orientation ignored"),
        Orientation::Stored => ("exif", "EXIF orientation applied"),
    };
    ways.push(way(name, change, declared.clone(), Slip::OtherOrientation));
    // What equals the declared way is no other way; nor can the nearest pixel be aliased any more.
    let sharp = declared.interpolation == Interpolation::Nearest;
    let differs = |way: &Way| way.preprocess != *declared || way.slip != Slip::None;
    let (own, others): (Vec<Way>, Vec<Way>) = ways.into_iter().partition(|way| way.name == "declared");
    let others = others.into_iter().filter(|way| differs(way) && !(sharp && way.slip == Slip::Aliased));
    own.into_iter().chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(declared: &Preprocess) -> Vec<&'static str> {
        ways(declared, Orientation::Exif).iter().map(|way| way.name).collect()
    }

    #[test]
    fn ways_that_are_the_declared_one_are_left_out() {
        let imagenet =
            Preprocess { interpolation: Interpolation::Bicubic, ..Preprocess::imagenet([224, 224]) };
        let colour = names(&imagenet);
        assert_eq!(
            colour,
            [
                "declared",
                "bgr",
                "half",
                "raw",
                "unscaled",
                "squash",
                "crop_pct 1.0",
                "aliased",
                "nearest",
                "bilinear",
                "no exif"
            ]
        );
        let grey = Preprocess::exact([28, 28], Normalisation { mean: vec![0.5], std: vec![0.5] });
        let grey = Preprocess { interpolation: Interpolation::Nearest, crop_mode: CropMode::Squash, ..grey };
        assert_eq!(
            names(&grey),
            ["declared", "raw", "unscaled", "center", "crop_pct 0.875", "bilinear", "bicubic", "no exif"]
        );
    }

    #[test]
    fn each_way_changes_the_input_as_it_says() {
        let pixels: Vec<u8> = (0..40 * 60 * 3).map(|at| (at * at / 7 % 256) as u8).collect();
        let picture = Picture::new(40, 60, 3, pixels).unwrap();
        let declared = Preprocess::imagenet([16, 16]);
        let input = |way: &Way| {
            let mut out = vec![0.0; 16 * 16 * 3];
            way.prepare(&picture, &mut out).unwrap();
            out
        };
        let all = ways(&declared, Orientation::Exif);
        let own = input(&all[0]);
        for way in &all[1..] {
            let found = input(way);
            let level = |values: &[f32], at: usize| {
                (values[at] * declared.std[at % 3] + declared.mean[at % 3]) * 255.0
            };
            match way.slip {
                Slip::OtherOrientation => assert_eq!(found, own),
                Slip::SwappedChannels => (0..16 * 16).for_each(|pixel| {
                    assert!((level(&found, pixel * 3) - level(&own, pixel * 3 + 2)).abs() < 1e-3);
                }),
                Slip::Unscaled => (0..own.len()).for_each(|at| {
                    let expected = (level(&own, at) - declared.mean[at % 3]) / declared.std[at % 3];
                    // Two roundings of values up to 1200.
                    assert!((found[at] - expected).abs() < 1e-2, "{} {expected}", found[at]);
                }),
                _ => assert_ne!(found, own, "{}", way.name),
            }
        }
    }
}
