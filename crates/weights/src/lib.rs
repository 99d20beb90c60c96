//! Weights in and out of modules: safetensors files (single or sharded, float32, bfloat16, float16), names by module path, checks
//! that list every difference by name, atomic saving, and the import of Show-o and MAGVIT-v2 checkpoints.
//!
//! Pickles (`.bin`, `.pt`, `.ckpt`) are refused: reading one runs the program inside it.

mod dtype;
mod error;
mod file;
mod header;
pub mod import;
mod lora;
pub mod manifest;
mod module;
mod packed;
mod set;
mod source;
mod write;

pub use dtype::{DType, FloatType};
pub use error::{LoadError, Problem, Result, WeightsError};
pub use file::SafetensorsFile;
pub use header::TensorInfo;
pub use import::{read_model_config, write_config_part};
pub use lora::{LORA_FILE, LoraFile, LoraInfo, Merge, WithLora, adapter_specs, load_adapters, merge_lora, save_lora};
pub use module::{
    NameMap, assign_param_ids, for_each_parameter, load_frozen, load_into, named_parameters, param_id, parameter_specs,
    save_module,
};
pub use packed::{PACKED_FILE, format_name, load_packed, load_packing, packed_format, save_packed};
pub use set::SafetensorsDir;
pub use source::{HostTensor, HostTensors, TensorSource};
pub use write::{SafetensorsWriter, TensorSpec};
