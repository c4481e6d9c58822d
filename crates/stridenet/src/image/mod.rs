//! One path from the bytes of an image to the numbers a network sees.
