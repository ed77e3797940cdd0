use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use crate::KernelError;

/// The instruction set that the kernels run on.
///
/// It is chosen at run time: the best one that the machine has, or the one that the environment
/// variable `MOEKIT_ISA` names. Results of different instruction sets differ by rounding; those of
/// one do not depend on the number of threads or the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust, which every machine runs: the reference.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with BF16, VNNI, VBMI and VBMI2: dot products of bf16 and of bytes.
    Avx512Bf16,
}

impl Isa {
    /// All, the best last.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16];

    /// The name that `MOEKIT_ISA` knows it by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512_bf16",
        }
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = || {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            };
            let avx512 = || {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            };
            match self {
                Self::Portable => true,
                Self::Avx2 => avx2(),
                Self::Avx512 => avx512(),
                Self::Avx512Bf16 => {
                    avx512()
                        && is_x86_feature_detected!("avx512bf16")
                        && is_x86_feature_detected!("avx512vnni")
                        && is_x86_feature_detected!("avx512vbmi")
                        && is_x86_feature_detected!("avx512vbmi2")
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable
        }
    }

    /// Those that this machine has, the best last; the portable one is always among them.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|i| i.is_available()).collect()
    }

    /// The best that this machine has.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::Portable)
    }

    /// What `MOEKIT_ISA` names when it is first asked for, the best if that is nothing.
    ///
    /// # Errors
    ///
    /// If the variable names no instruction set, or one that this machine lacks.
    pub fn from_env() -> Result<Self, KernelError> {
        static CHOICE: OnceLock<Result<Isa, String>> = OnceLock::new();
        let choice = CHOICE.get_or_init(|| match std::env::var_os("MOEKIT_ISA") {
            Some(name) if !name.is_empty() => {
                let name = name.to_string_lossy().into_owned();
                name.parse().map_err(|_: KernelError| name)
            }
            _ => Ok(Self::best()),
        });
        choice.clone().map_err(|name| KernelError::Isa { name })
    }

    /// Itself, if this machine has it.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub fn checked(self) -> Result<Self, KernelError> {
        match self.is_available() {
            true => Ok(self),
            false => Err(KernelError::Isa {
                name: self.name().to_owned(),
            }),
        }
    }

    /// The names of those available, for messages.
    pub(crate) fn listed() -> String {
        let names: Vec<&str> = Self::available().into_iter().map(Self::name).collect();
        names.join(", ")
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = KernelError;

    /// An instruction set that this machine has, by name.
    fn from_str(name: &str) -> Result<Self, KernelError> {
        let found = Self::ALL.into_iter().find(|isa| isa.name() == name);
        found.map_or_else(
            || {
                Err(KernelError::Isa {
                    name: name.to_owned(),
                })
            },
            Self::checked,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_refused() {
        for isa in Isa::available() {
            assert_eq!(isa.name().parse::<Isa>().unwrap(), isa);
        }
        let message = "sse9".parse::<Isa>().unwrap_err().to_string();
        assert!(
            message.contains("sse9") && message.contains("portable"),
            "{message}"
        );
        assert!(Isa::available().contains(&Isa::best()));
    }
}
