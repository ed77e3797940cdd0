//! Instruction sets, chosen at run time.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use crate::KernelError;

/// The environment variable that forces an instruction set.
const VARIABLE: &str = "MOEKIT_ISA";

/// An instruction set that kernels are written for, from the plainest to the widest.
///
/// ```
/// use moekit_kernels::Isa;
///
/// assert!(Isa::Portable.is_available());
/// assert!(Isa::available().any(|isa| isa == Isa::best()));
/// assert_eq!("avx2".parse(), Ok(Isa::Avx2));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust: the reference, on every machine.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL, and what [`Isa::Avx2`] has.
    Avx512,
    /// [`Isa::Avx512`] with its extensions BF16, VBMI and VNNI.
    Avx512Bf16,
}

impl Isa {
    /// All, from the plainest to the widest.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16];

    /// The name that [`FromStr`] reads.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
        }
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => {
                Self::Avx512.is_available()
                    && is_x86_feature_detected!("avx512bf16")
                    && is_x86_feature_detected!("avx512vbmi")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Those of this machine, from the plainest to the widest.
    pub fn available() -> impl DoubleEndedIterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// The widest one of this machine.
    pub fn best() -> Self {
        Self::available().next_back().unwrap_or(Self::Portable)
    }

    /// The one that the environment variable `MOEKIT_ISA` names, [`Isa::best`] if it is not set.
    /// The variable is read once.
    ///
    /// # Errors
    ///
    /// If the variable holds no name, or that of an instruction set which this machine lacks.
    pub fn detect() -> Result<Self, KernelError> {
        static DETECTED: LazyLock<Result<Isa, KernelError>> =
            LazyLock::new(|| match std::env::var_os(VARIABLE) {
                None => Ok(Isa::best()),
                Some(name) => forced(&name.to_string_lossy()),
            });
        DETECTED.clone()
    }
}

fn forced(name: &str) -> Result<Isa, KernelError> {
    let isa: Isa = name.parse()?;
    isa.checked()
}

impl Isa {
    /// The set itself if this machine has it.
    pub(crate) fn checked(self) -> Result<Self, KernelError> {
        if self.is_available() {
            return Ok(self);
        }
        let available: Vec<_> = Self::available().map(Self::name).collect();
        Err(KernelError::Isa(format!(
            "this machine has no `{self}`; it has {}",
            available.join(", ")
        )))
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = KernelError;

    fn from_str(name: &str) -> Result<Self, KernelError> {
        let found = Self::ALL.into_iter().find(|isa| isa.name() == name);
        found.ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            KernelError::Isa(format!("`{name}` is not known; known are {known}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_refused() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
        let error = forced("avx1024").unwrap_err().to_string();
        assert!(
            error.contains("`avx1024`") && error.contains("portable, avx2"),
            "{error}"
        );
    }

    #[test]
    fn what_the_machine_lacks_is_refused() {
        for isa in Isa::ALL {
            assert_eq!(forced(isa.name()).is_ok(), isa.is_available());
        }
        assert!(Isa::best().is_available());
    }
}
