//! What training leaves out at random: main paths of blocks (Huang et al. 2016) and regions of feature maps (Ghiasi et al.
//! 2018), arranged as timm does.

use super::Network;
use crate::layer::BlockDrop;
use crate::random::{Use, generator};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// How much training leaves out; 0 is nothing. Evaluation and plans leave out nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DropRates {
    /// Probability that an image goes around the last block; it rises linearly from 0 at the first one. What goes through is
    /// divided by the probability that it does.
    pub path: f64,
    /// Share of the feature maps of the last two stages that is left out in squares, of 5×5 pixels at a quarter of the rate
    /// in the last stage but one, of 3×3 in the last. What is kept is scaled by the share that is kept of the batch.
    pub block: f64,
}

/// The squares of a stage: their side, and the scale of the rate.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Squares {
    side: usize,
    scale: f64,
}

impl Squares {
    /// Those of the stage `stage` of `stages`.
    fn of(stage: usize, stages: usize) -> Option<Squares> {
        match stages - stage {
            1 => Some(Squares { side: 3, scale: 1.0 }),
            2 => Some(Squares { side: 5, scale: 0.25 }),
            _ => None,
        }
    }

    /// The probability that a pixel is the centre of a square, in a feature map of `[height, width]`.
    fn gamma(self, rate: f64, [height, width]: [usize; 2]) -> f64 {
        let [rows, columns] = [height, width].map(|size| size.min(self.side));
        let places = (height - rows + 1) * (width - columns + 1);
        self.scale * rate * (height * width) as f64 / (rows * columns) as f64 / places as f64
    }

    /// Clears the pixels of `kept`, `[height, width]`, that are in the square around `[row, column]`. A square with an even side
    /// reaches further up and to the left.
    fn clear(self, kept: &mut [f32], [height, width]: [usize; 2], [row, column]: [usize; 2]) {
        let reach = |at: usize, size: usize| {
            let side = size.min(self.side);
            at.saturating_sub(side / 2)..(at + (side - 1) / 2 + 1).min(size)
        };
        for row in reach(row, height) {
            kept[row * width..][reach(column, width)].fill(0.0);
        }
    }

    /// A factor for each pixel of feature maps of `[height, width]`: 0 in the squares around the centres that `is_centre` tells
    /// for each pixel in order, elsewhere what keeps the sum of all factors.
    fn factors(self, images: usize, size: [usize; 2], mut is_centre: impl FnMut(usize) -> bool) -> Vec<f32> {
        let [height, width] = size;
        let mut factors = vec![1.0; images * height * width];
        for (image, kept) in factors.chunks_exact_mut(height * width).enumerate() {
            for at in 0..height * width {
                if is_centre(image) {
                    self.clear(kept, size, [at / width, at % width]);
                }
            }
        }
        let kept = factors.iter().filter(|&&factor| factor > 0.0).count();
        let scale = factors.len() as f32 / (kept as f32 + 1e-7);
        factors.iter_mut().for_each(|factor| *factor *= scale);
        factors
    }
}

impl DropRates {
    /// What happens to each block in a training pass over the images of the numbers `images`: a function of seed, epoch and
    /// images. Empty where nothing is left out.
    pub fn drops(self, network: &Network, seed: u64, epoch: u64, images: &[usize]) -> Vec<BlockDrop> {
        if self == DropRates::default() {
            return Vec::new();
        }
        let random = |purpose| -> Vec<ChaCha8Rng> {
            images.iter().map(|&image| generator(seed, purpose, [epoch, image as u64])).collect()
        };
        let (mut paths, mut blocks) = (random(Use::DropPath), random(Use::DropBlock));
        let (count, rows) = (network.blocks.len(), &network.arch().stages);
        let stages = rows.iter().enumerate().flat_map(|(stage, row)| std::iter::repeat_n(stage, row.blocks));
        let drop = |(index, (block, stage)): (usize, (&crate::layer::Block, usize))| {
            let rate = self.path * index as f64 / (count.max(2) - 1) as f64;
            let images = (rate > 0.0).then(|| {
                let factor = |random: &mut ChaCha8Rng| {
                    if random.random_bool(1.0 - rate) { (1.0 / (1.0 - rate)) as f32 } else { 0.0 }
                };
                paths.iter_mut().map(factor).collect()
            });
            let wanted = self.block > 0.0 && block.norm.is_none();
            let squares = Squares::of(stage, rows.len()).filter(|_| wanted);
            let pixels = squares.map(|squares| {
                let size = block.units[block.units.len() - 2].conv.output();
                let gamma = squares.gamma(self.block, size);
                squares.factors(blocks.len(), size, |image| blocks[image].random_bool(gamma))
            });
            BlockDrop { images, pixels }
        };
        network.blocks.iter().zip(stages).enumerate().map(drop).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Arch, Overrides};
    use crate::kernels::Level;
    use crate::network::Initialise;

    /// `timm.layers.drop.drop_block_2d` of ones at a rate of 0.1 with these centres, timm 1.0.31: gamma, which pixels are kept,
    /// and what they become.
    #[test]
    fn squares_are_timms() {
        let cases = [
            (
                (Squares { side: 5, scale: 0.25 }, [7, 6]),
                vec![[0, 0, 0], [1, 3, 5]],
                (0.007, "...###...###...###########################", 1.4),
                "#########...###...###...###...###...######",
            ),
            (
                (Squares { side: 5, scale: 0.25 }, [4, 4]),
                vec![[0, 1, 2]],
                (0.025, "............####", 4.0),
                "",
            ),
            (
                (Squares { side: 3, scale: 1.0 }, [4, 5]),
                vec![[0, 2, 3]],
                (0.037_037_037, "#######...##...##...", 1.818_181_9),
                "",
            ),
            ((Squares { side: 3, scale: 1.0 }, [2, 2]), vec![[0, 1, 1]], (0.1, "....", 0.0), ""),
            ((Squares { side: 3, scale: 1.0 }, [2, 2]), vec![[0, 0, 0]], (0.1, ".###", 1.333_333_4), ""),
        ];
        for ((squares, size), centres, (gamma, kept, value), second) in cases {
            assert!((squares.gamma(0.1, size) - gamma).abs() < 1e-9);
            let pixels = size[0] * size[1];
            let images = (kept.len() + second.len()) / pixels;
            let mut seen = vec![0; images];
            let factors = squares.factors(images, size, |image| {
                let at = seen[image];
                seen[image] += 1;
                centres.contains(&[image, at / size[1], at % size[1]])
            });
            let expected =
                kept.chars().chain(second.chars()).map(|mark| if mark == '#' { value } else { 0.0 });
            assert_eq!(factors, expected.collect::<Vec<f32>>(), "{squares:?} {size:?}");
        }
    }

    fn network(name: &str) -> Network {
        let small = Overrides { img_size: Some([64, 64]), ..Overrides::default() };
        let arch = Arch::preset(name).unwrap().with(&small).unwrap();
        Network::new(&arch, [64, 64], Level::detect(), Initialise::default()).unwrap()
    }

    #[test]
    fn drops_belong_to_an_image_of_an_epoch_and_rise_with_depth() {
        let network = network("resnet18");
        let rates = DropRates { path: 0.6, block: 0.3 };
        let drops = rates.drops(&network, 7, 2, &[5, 900, 31]);
        assert_eq!(drops.len(), 8);
        // The same images in another order and company have the same paths.
        let paths = |drops: &[BlockDrop], image: usize| -> Vec<Option<f32>> {
            drops.iter().map(|drop| drop.images.as_ref().map(|images| images[image])).collect()
        };
        let again = rates.drops(&network, 7, 2, &[31, 5]);
        assert_eq!([paths(&again, 1), paths(&again, 0)], [paths(&drops, 0), paths(&drops, 2)]);
        assert_ne!(rates.drops(&network, 7, 3, &[5, 900, 31]), drops);
        // Nothing is dropped in the first block, and 8 × 8 and 4 × 4 pixels at the rate in the last two stages.
        assert_eq!(drops[0], BlockDrop::default());
        let pixels = drops.iter().map(|drop| drop.pixels.as_ref().map_or(0, Vec::len));
        assert_eq!(pixels.collect::<Vec<_>>(), [0, 0, 0, 0, 48, 48, 12, 12]);
        // One rate draws nothing for the other.
        let alone = DropRates { path: 0.6, block: 0.0 }.drops(&network, 7, 2, &[5, 900, 31]);
        assert!(drops.iter().zip(&alone).all(|(a, b)| a.images == b.images && b.pixels.is_none()));
        assert!(DropRates::default().drops(&network, 7, 2, &[5]).is_empty());
    }

    /// Shares of many draws against the rates: a mean of 4,000 draws is within 4 standard deviations of 0.5 / √4000.
    #[test]
    fn as_much_is_dropped_as_asked_for() {
        let (network, images) = (network("resnet18"), (0..4000).collect::<Vec<_>>());
        let drops = DropRates { path: 0.35, block: 0.0 }.drops(&network, 1, 0, &images);
        for (index, drop) in drops.iter().enumerate().skip(1) {
            let (rate, factors) = (0.35 * index as f64 / 7.0, drop.images.as_ref().unwrap());
            let dropped = factors.iter().filter(|&&factor| factor == 0.0).count() as f64 / 4000.0;
            assert!((dropped - rate).abs() < 4.0 * 0.5 / 4000f64.sqrt(), "block {index}: {dropped}");
            let kept = (1.0 / (1.0 - rate)) as f32;
            assert!(factors.iter().all(|&factor| factor == 0.0 || factor == kept));
        }
    }
}
