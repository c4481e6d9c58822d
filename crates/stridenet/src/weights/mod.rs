//! Model folders and safetensors files, and an account of what was loaded.
