use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::EvalError;

/// How popular the experts of a layer are.
///
/// Written as `NAME[:PARAM]`, e.g. `lognormal:0.8`; without its parameter a profile has the
/// default one.
///
/// ```
/// use moekit_eval::workload::Profile;
///
/// assert_eq!("zipf:1.2".parse::<Profile>()?, Profile::Zipf(1.2));
/// assert_eq!("lognormal".parse::<Profile>()?.to_string(), "lognormal:0.8");
/// # Ok::<(), moekit_eval::EvalError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum Profile {
    /// `uniform`: all alike.
    Uniform,
    /// `lognormal:σ` (0.8): log-popularity is normal with standard deviation σ. Of the
    /// distributions tried on DeepSeek-V3's per-rank counts, the one that fits best
    /// ([DeepEP #393](https://github.com/deepseek-ai/DeepEP/pull/393)).
    LogNormal(f64),
    /// `zipf:s` (1.0): the `k`-th most popular expert has popularity `k^-s`.
    Zipf(f64),
    /// `powerlaw:α` (1.2): aiconfigurator's bounded power law: popularity from 1 to 0.8 times the
    /// tokens before top-8 gating, with density `x^-α`; 1.01 resembles DeepSeek-R1, 1.2
    /// Qwen3-235B.
    PowerLaw(f64),
    /// `r1-mt`: DeepSeek-R1 on machine translation, fitted to the per-iteration statistics of
    /// [TensorRT-LLM's EPLB report](https://github.com/NVIDIA/TensorRT-LLM/blob/main/docs/source/blogs/tech_blog/blog4_Scaling_Expert_Parallelism_in_TensorRT-LLM.md):
    /// lognormal with σ = 1.04, and counts that vary from step to step as
    /// Dirichlet-multinomial with concentration 13 000. Averaged over layers, as the report
    /// averages, its six statistics come within 6 %. (σ = 0.985 has the report's expert
    /// variance in expectation, but the mean of the standard deviations is below the root of the
    /// mean variance, and the rank imbalance falls short by 13 %.)
    R1Mt,
    /// `hot:h` (0.4): one expert has the share `h` of all tokens, the others share the rest
    /// evenly.
    Hot(f64),
}

// The parameters of `Profile::R1Mt`.
const R1_MT_CONCENTRATION: f64 = 13_000.0;
const R1_MT_SIGMA: f64 = 1.04;

impl Profile {
    /// The names, with the symbols of their parameters.
    pub const NAMES: &'static [&'static str] = &[
        "uniform",
        "lognormal:σ",
        "zipf:s",
        "powerlaw:α",
        "r1-mt",
        "hot:share",
    ];

    /// Checks the parameter.
    ///
    /// # Errors
    ///
    /// If it is negative, infinite or NaN, or a share above 1.
    pub(super) fn check(self) -> Result<Self, EvalError> {
        let (parameter, limit) = match self {
            Self::Uniform | Self::R1Mt => return Ok(self),
            Self::LogNormal(v) | Self::Zipf(v) | Self::PowerLaw(v) => (v, 100.0),
            Self::Hot(v) => (v, 1.0),
        };
        if (0.0..=limit).contains(&parameter) {
            return Ok(self);
        }
        Err(EvalError::setting(
            "the parameter of the profile",
            self,
            format!("0 to {limit}"),
        ))
    }

    /// How strongly shares vary from step to step by themselves, if they do.
    pub(super) fn concentration(self) -> Option<f64> {
        (self == Self::R1Mt).then_some(R1_MT_CONCENTRATION)
    }

    /// The popularity of the most popular expert, the second, and so on, if it does not follow
    /// from the latent values; `draw` gives uniform numbers in `[0, 1)`.
    pub(super) fn levels(
        self,
        experts: usize,
        tokens: u64,
        mut draw: impl FnMut() -> f64,
    ) -> Levels {
        let mut levels: Vec<f64> = match self {
            Self::LogNormal(sigma) => return Levels::Exponential(sigma),
            Self::R1Mt => return Levels::Exponential(R1_MT_SIGMA),
            Self::Uniform => vec![1.0; experts],
            Self::Zipf(s) => (1..=experts).map(|k| (k as f64).powf(-s)).collect(),
            Self::PowerLaw(alpha) => {
                let (low, high) = power_law_bounds(experts, tokens);
                let sample = |_| bounded_power_law(alpha, low, high, draw());
                (0..experts).map(sample).collect()
            }
            Self::Hot(share) => {
                let others = (1.0 - share) / (experts.max(2) - 1) as f64;
                let hot = if experts == 1 { 1.0 } else { share };
                (0..experts)
                    .map(|e| if e == 0 { hot } else { others })
                    .collect()
            }
        };
        levels.sort_by(|a, b| b.total_cmp(a));
        Levels::Ranked(levels)
    }
}

/// The bounds of aiconfigurator's `power_law_logits_v3`. It knows the tokens before gating; here
/// they are taken as an eighth of the routed ones, top-8 being what its figures were fitted on.
fn power_law_bounds(experts: usize, tokens: u64) -> (f64, f64) {
    if tokens > experts as u64 {
        (1.0, (0.8 * tokens as f64 / 8.0).max(2.0))
    } else {
        (0.01, 2.0)
    }
}

/// The inverse of the cumulative distribution of the density `x^-alpha` on `low..high`.
fn bounded_power_law(alpha: f64, low: f64, high: f64, u: f64) -> f64 {
    let exponent = 1.0 - alpha;
    if exponent.abs() < 1e-9 {
        return low * (high / low).powf(u);
    }
    let (from, to) = (low.powf(exponent), high.powf(exponent));
    ((to - from) * u + from).powf(1.0 / exponent)
}

/// How the latent values of the experts become popularity.
#[derive(Clone, Debug)]
pub(super) enum Levels {
    /// `exp(σ z)`.
    Exponential(f64),
    /// The expert with the largest latent value has the first, and so on.
    Ranked(Vec<f64>),
}

impl Levels {
    /// The share of each expert, `[E]`, sum 1.
    pub(super) fn shares(&self, latent: &[f64]) -> Vec<f64> {
        let mut shares = match self {
            Self::Exponential(sigma) => {
                // Relative to the largest, so that no sigma overflows.
                let top = latent.iter().copied().fold(f64::MIN, f64::max);
                latent.iter().map(|z| (sigma * (z - top)).exp()).collect()
            }
            Self::Ranked(levels) => {
                let mut order: Vec<usize> = (0..latent.len()).collect();
                // Stable: among equals, the lowest index first.
                order.sort_by(|&a, &b| latent[b].total_cmp(&latent[a]));
                let mut shares = vec![0.0; latent.len()];
                for (&expert, &level) in order.iter().zip(levels) {
                    shares[expert] = level;
                }
                shares
            }
        };
        let sum: f64 = shares.iter().sum();
        for share in &mut shares {
            *share /= sum;
        }
        shares
    }
}

impl FromStr for Profile {
    type Err = EvalError;

    fn from_str(text: &str) -> Result<Self, EvalError> {
        let unknown = || {
            let known = format!("one of {}", Self::NAMES.join(", "));
            EvalError::setting("the profile", format!("`{text}`"), known)
        };
        let (name, parameter) = match text.split_once(':') {
            Some((name, parameter)) => (name, Some(parameter)),
            None => (text, None),
        };
        let number = |default: f64| match parameter {
            None => Ok(default),
            Some(text) => text.parse::<f64>().map_err(|_| {
                EvalError::setting(
                    "the parameter of the profile",
                    format!("`{text}`"),
                    "a number",
                )
            }),
        };
        let profile = match (name, parameter) {
            ("uniform", None) => Self::Uniform,
            ("r1-mt", None) => Self::R1Mt,
            ("lognormal", _) => Self::LogNormal(number(0.8)?),
            ("zipf", _) => Self::Zipf(number(1.0)?),
            ("powerlaw", _) => Self::PowerLaw(number(1.2)?),
            ("hot", _) => Self::Hot(number(0.4)?),
            _ => return Err(unknown()),
        };
        profile.check()
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => write!(f, "uniform"),
            Self::LogNormal(sigma) => write!(f, "lognormal:{sigma}"),
            Self::Zipf(s) => write!(f, "zipf:{s}"),
            Self::PowerLaw(alpha) => write!(f, "powerlaw:{alpha}"),
            Self::R1Mt => write!(f, "r1-mt"),
            Self::Hot(share) => write!(f, "hot:{share}"),
        }
    }
}

impl TryFrom<String> for Profile {
    type Error = EvalError;

    fn try_from(text: String) -> Result<Self, EvalError> {
        text.parse()
    }
}

impl From<Profile> for String {
    fn from(profile: Profile) -> Self {
        profile.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for text in [
            "uniform",
            "lognormal:1.5",
            "zipf:0.4",
            "powerlaw:1",
            "r1-mt",
            "hot:0.25",
        ] {
            assert_eq!(text.parse::<Profile>().unwrap().to_string(), text);
        }
        let json = serde_json::to_string(&Profile::Hot(0.5)).unwrap();
        assert_eq!(json, "\"hot:0.5\"");
        assert_eq!(
            serde_json::from_str::<Profile>(&json).unwrap(),
            Profile::Hot(0.5)
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for (text, part) in [
            ("pareto", "`pareto`, expected one of uniform, lognormal"),
            ("uniform:1", "`uniform:1`"),
            ("zipf:x", "`x`, expected a number"),
            ("zipf:", "``, expected a number"),
            ("zipf:-1", "zipf:-1, expected 0 to 100"),
            ("zipf:NaN", "zipf:NaN"),
            ("lognormal:inf", "lognormal:inf"),
            ("hot:1.1", "hot:1.1, expected 0 to 1"),
        ] {
            let error = text.parse::<Profile>().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn shares_follow_the_formulas() {
        let shares = |profile: Profile, latent: &[f64]| {
            profile.levels(latent.len(), 1 << 15, || 0.5).shares(latent)
        };
        assert_eq!(shares(Profile::Uniform, &[3.0, 1.0]), [0.5, 0.5]);
        let zipf = shares(Profile::Zipf(1.0), &[0.1, 0.3, 0.2]);
        let sum = 1.0 + 0.5 + 1.0 / 3.0;
        assert_eq!(zipf, [1.0 / 3.0 / sum, 1.0 / sum, 0.5 / sum]);
        let log = shares(Profile::LogNormal(2.0), &[0.0, 1.0]);
        assert!((log[1] / log[0] - 2f64.exp()).abs() < 1e-12);
        let hot = shares(Profile::Hot(0.4), &[0.0, 0.0, 1.0, 0.5]);
        assert!((hot[2] - 0.4).abs() < 1e-12 && (hot[0] - 0.2).abs() < 1e-12);
        assert_eq!(shares(Profile::Hot(0.4), &[0.0]), [1.0]);
        assert_eq!(shares(Profile::LogNormal(100.0), &[-9.0, 9.0]), [0.0, 1.0]);
    }

    #[test]
    fn the_power_law_has_its_quantiles() {
        // P(X <= x) = (x^(1-a) - low^(1-a)) / (high^(1-a) - low^(1-a))
        for alpha in [0.5, 1.01, 1.2, 3.0] {
            let power = |x: f64| x.powf(1.0 - alpha);
            let u = (power(10.0) - power(1.0)) / (power(100.0) - power(1.0));
            let x = bounded_power_law(alpha, 1.0, 100.0, u);
            assert!((x - 10.0).abs() < 1e-6, "{alpha}: {x}");
        }
        assert!((bounded_power_law(1.0, 1.0, 100.0, 0.5) - 10.0).abs() < 1e-9);
    }
}
