//! One file for each command.

pub mod ask;
pub mod doctor;
pub mod edit;
pub mod eval;
pub mod extend;
pub mod generate;
pub mod import;
pub mod inspect;
pub mod lora;
pub mod pack;
pub mod plot;
pub mod score;
pub mod train;
