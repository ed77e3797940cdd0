//! One file per model family: what its `config.json` means.

use crate::Family;

mod common;
mod dbrx;
mod deepseek_v2;
mod deepseek_v3;
mod ernie4_5_moe;
mod glm4_moe;
mod gpt_oss;
mod granitemoe;
mod llama4;
mod minimax_m2;
mod mixtral;
mod olmoe;
mod phimoe;
mod qwen_moe;

/// The families of this crate. Named here, so that no linker drops them.
pub(crate) static BUILTIN: &[Family] = &[
    dbrx::FAMILY,
    deepseek_v2::FAMILY,
    deepseek_v3::FAMILY,
    ernie4_5_moe::FAMILY,
    glm4_moe::FAMILY,
    gpt_oss::FAMILY,
    granitemoe::FAMILY,
    llama4::FAMILY,
    minimax_m2::FAMILY,
    mixtral::FAMILY,
    olmoe::FAMILY,
    phimoe::FAMILY,
    qwen_moe::FAMILY,
];
