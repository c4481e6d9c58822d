//! The embedded sample: 10,000 training and 2,000 test images of Fashion-MNIST (Xiao, Rasul, Vollgraf 2017), the same
//! number of each class. `sample/README.md` in the crate's folder says how it was cut.

use super::dataset::Packed;
use super::{DataError, Dataset, idx};
use std::sync::{Arc, OnceLock};

/// The classes of Fashion-MNIST, in the order of its labels.
const CLASSES: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

struct Decoded {
    images: Arc<Packed>,
    labels: Vec<u8>,
}

/// The training part.
pub(super) fn train() -> Result<Dataset, DataError> {
    static DECODED: OnceLock<Decoded> = OnceLock::new();
    open(
        &DECODED,
        "train",
        include_bytes!("../../sample/train-images-idx3-ubyte.gz"),
        include_bytes!("../../sample/train-labels-idx1-ubyte.gz"),
    )
}

/// The test part.
pub(super) fn test() -> Result<Dataset, DataError> {
    static DECODED: OnceLock<Decoded> = OnceLock::new();
    open(
        &DECODED,
        "test",
        include_bytes!("../../sample/t10k-images-idx3-ubyte.gz"),
        include_bytes!("../../sample/t10k-labels-idx1-ubyte.gz"),
    )
}

/// Decompresses on first use and shares the pictures afterwards.
fn open(
    cell: &OnceLock<Decoded>,
    title: &str,
    images: &'static [u8],
    labels: &'static [u8],
) -> Result<Dataset, DataError> {
    let decoded = match cell.get() {
        Some(decoded) => decoded,
        None => {
            let (images, labels) = idx::decode_pair("the embedded sample", images, labels)?;
            cell.get_or_init(|| Decoded { images: Arc::new(images), labels })
        }
    };
    let classes = CLASSES.map(String::from).to_vec();
    idx::assemble("the embedded sample", title, decoded.images.clone(), decoded.labels.clone(), Some(classes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_balanced() {
        for (dataset, each) in [(train().unwrap(), 1000), (test().unwrap(), 200)] {
            assert_eq!(dataset.class_counts(), [each; 10]);
            assert_eq!(dataset.len(), 10 * each);
            assert_eq!(dataset.picture_size(), Some([28, 28]));
            assert_eq!(dataset.classes()[9], "Ankle boot");
            assert_eq!(dataset.picture(dataset.len() - 1).unwrap().pixels().len(), 784);
        }
        // The first training image of Fashion-MNIST is an ankle boot.
        assert_eq!(train().unwrap().label(0), 9);
        assert_eq!(train().unwrap().name(17), "train[17]");
    }
}
