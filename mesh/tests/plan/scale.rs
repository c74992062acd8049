//! How long planning takes. Prints, and asserts nothing about time: see `bench/`.
