//! What the targets of the image formats share.

use libfuzzer_sys::Corpus;
use stridenet::image::{CropMode, Interpolation, Normalisation, Preprocess, decode};

/// Any bytes that begin so are a picture, which any preprocessing can prepare, or a one-line error.
pub(crate) fn check(bytes: &[u8], start: &[u8]) -> Corpus {
    // Bytes of another format belong to another target.
    if !bytes.starts_with(start) {
        return Corpus::Reject;
    }
    match decode(bytes, "picture") {
        Ok(picture) => {
            let [height, width] = picture.size();
            assert_eq!(picture.pixels().len(), height * width * picture.channels());
            let which = usize::from(bytes[bytes.len() / 2]);
            let modes = [CropMode::Center, CropMode::Squash, CropMode::Border];
            let filters = [Interpolation::Nearest, Interpolation::Bilinear, Interpolation::Lanczos];
            let preprocess = Preprocess {
                crop_mode: modes[which % 3],
                interpolation: filters[which / 3 % 3],
                ..Preprocess::exact([9, 12], Normalisation::imagenet())
            };
            let mut values = [f32::NAN; 9 * 12 * 3];
            match preprocess.apply(&picture, &mut values) {
                Ok(()) => assert!(values.iter().all(|value| value.is_finite())),
                Err(error) => assert!(!error.to_string().contains(char::is_control), "{error}"),
            }
        }
        Err(error) => assert!(!error.to_string().contains(char::is_control), "{error}"),
    }
    Corpus::Keep
}
