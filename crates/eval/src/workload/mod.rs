//! Expert loads made to order: `[S, L, E]` token counts, seeded.
//!
//! Every expert has a latent normal value, from which the [`Profile`] makes its share of the
//! tokens. Drift moves the latent values, `z' = (1 - D) z + sqrt(1 - (1 - D)²) ε` per step (a
//! first-order autoregressive process), so that the popularity of any step is distributed as the
//! profile says. The counts of a step are drawn multinomially and sum to exactly the tokens asked
//! for, in every layer.
//!
//! A trace is a function of the settings and the seed; a longer one begins with the shorter one.

mod profile;
mod sample;

use std::str::FromStr;

use moekit_placement::{ExpertLoad, LoadTrace};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

pub use profile::Profile;

use crate::EvalError;
use profile::Levels;
use sample::{dirichlet, multinomial, normals, uniform, uniform_index};

/// The most values that a trace may have: 2 GiB.
const MAX_VALUES: usize = 1 << 28;
/// Doubles hold integers up to here.
const MAX_TOKENS: u64 = 1 << 53;

/// A description of the load to generate.
///
/// ```
/// use moekit_eval::workload::{Profile, Workload};
///
/// let workload = Workload::new(Profile::R1Mt, 8, 2, 3, 1000)?.with_drift(0.05)?.with_seed(7);
/// let trace = workload.generate()?;
/// assert_eq!((trace.steps().len(), trace.num_layers(), trace.num_experts()), (3, 2, 8));
/// for layer in trace.steps().iter().flat_map(|step| step.layers()) {
///     assert_eq!(layer.iter().sum::<f64>(), 1000.0);
/// }
/// assert_eq!(trace, workload.generate()?);
/// # Ok::<(), moekit_eval::EvalError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    profile: Profile,
    num_experts: usize,
    num_layers: usize,
    num_steps: usize,
    tokens: u64,
    drift: f64,
    concentration: Option<f64>,
    domains: usize,
    domain_steps: usize,
    flash_crowd: Option<FlashCrowd>,
    seed: u64,
}

/// For some steps, one expert of every layer gets a share of all tokens on top of what it had.
/// Written as `START:STEPS:SHARE`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct FlashCrowd {
    /// The first step.
    pub start: usize,
    /// How many steps.
    pub steps: usize,
    /// The share of all tokens, 0 to 1.
    pub share: f64,
}

impl FlashCrowd {
    /// A crowd of `steps` steps from step `start` on.
    ///
    /// # Errors
    ///
    /// If the share is not within 0 to 1.
    pub fn new(start: usize, steps: usize, share: f64) -> Result<Self, EvalError> {
        Ok(Self {
            start,
            steps,
            share: fraction("the share of a flash crowd", share)?,
        })
    }

    fn is_on(&self, step: usize) -> bool {
        step.checked_sub(self.start)
            .is_some_and(|since| since < self.steps)
    }
}

impl FromStr for FlashCrowd {
    type Err = EvalError;

    fn from_str(text: &str) -> Result<Self, EvalError> {
        let parts: Vec<&str> = text.split(':').collect();
        let parsed = match parts.as_slice() {
            [start, steps, share] => match (start.parse(), steps.parse(), share.parse()) {
                (Ok(start), Ok(steps), Ok(share)) => Some((start, steps, share)),
                _ => None,
            },
            _ => None,
        };
        let (start, steps, share) = parsed.ok_or_else(|| {
            let expected = "START:STEPS:SHARE, e.g. 100:20:0.3";
            EvalError::setting("the flash crowd", format!("`{text}`"), expected)
        })?;
        Self::new(start, steps, share)
    }
}

impl Workload {
    /// A load that does not drift, with seed 0.
    ///
    /// # Arguments
    ///
    /// - `tokens` - routed tokens per layer and step: tokens times top-k.
    ///
    /// # Errors
    ///
    /// If a dimension is zero, the trace would not fit in memory, or the profile's parameter is
    /// out of range.
    pub fn new(
        profile: Profile,
        num_experts: usize,
        num_layers: usize,
        num_steps: usize,
        tokens: u64,
    ) -> Result<Self, EvalError> {
        for (what, got) in [
            ("the number of experts", num_experts),
            ("the number of layers", num_layers),
            ("the number of steps", num_steps),
        ] {
            if got == 0 {
                return Err(EvalError::setting(what, got, "1 or more"));
            }
        }
        let values = num_experts
            .checked_mul(num_layers)
            .and_then(|n| n.checked_mul(num_steps));
        if values.is_none_or(|n| n > MAX_VALUES) {
            let shape = format!("[{num_steps}, {num_layers}, {num_experts}]");
            let expected = format!("at most {MAX_VALUES} values");
            return Err(EvalError::setting(
                "the shape of the trace",
                shape,
                expected,
            ));
        }
        if tokens > MAX_TOKENS {
            let expected = format!("at most {MAX_TOKENS}");
            return Err(EvalError::setting("the number of tokens", tokens, expected));
        }
        let profile = profile.check()?;
        Ok(Self {
            profile,
            num_experts,
            num_layers,
            num_steps,
            tokens,
            drift: 0.0,
            concentration: profile.concentration(),
            domains: 1,
            domain_steps: 1,
            flash_crowd: None,
            seed: 0,
        })
    }

    /// The fraction of the log-popularity that is mixed anew in every step, `D` of the
    /// [formula](self): 0 stands still, 1 forgets everything.
    ///
    /// # Errors
    ///
    /// If it is not within 0 to 1.
    pub fn with_drift(mut self, drift: f64) -> Result<Self, EvalError> {
        self.drift = fraction("the drift", drift)?;
        Ok(self)
    }

    /// Lets the shares of every step scatter around the popularity by a Dirichlet distribution
    /// with this concentration, beyond what drawing the tokens does: small is bursty. Without it,
    /// only [`Profile::R1Mt`] scatters, with its own.
    ///
    /// # Errors
    ///
    /// If it is not a positive number.
    pub fn with_concentration(mut self, concentration: f64) -> Result<Self, EvalError> {
        if !(concentration.is_finite() && concentration > 0.0) {
            let what = "the concentration";
            return Err(EvalError::setting(what, concentration, "a positive number"));
        }
        self.concentration = Some(concentration);
        Ok(self)
    }

    /// Switches between `domains` unrelated popularities, in turn, every `steps` steps: the topic
    /// of the requests changes and comes back.
    ///
    /// # Errors
    ///
    /// If either is zero, or the turn of a domain never comes.
    pub fn with_domains(mut self, domains: usize, steps: usize) -> Result<Self, EvalError> {
        for (what, got) in [
            ("the number of domains", domains),
            ("the steps of a domain", steps),
        ] {
            if got == 0 {
                return Err(EvalError::setting(what, got, "1 or more"));
            }
        }
        let most = self.num_steps.div_ceil(steps);
        if domains > most {
            let expected = format!(
                "at most {most}, so that each has its turn in {} steps",
                self.num_steps
            );
            return Err(EvalError::setting(
                "the number of domains",
                domains,
                expected,
            ));
        }
        (self.domains, self.domain_steps) = (domains, steps);
        Ok(self)
    }

    /// Adds a flash crowd.
    ///
    /// # Errors
    ///
    /// If it comes in none of the steps.
    pub fn with_flash_crowd(mut self, crowd: FlashCrowd) -> Result<Self, EvalError> {
        if crowd.steps == 0 || crowd.start >= self.num_steps {
            let got = format!("{} steps from step {} on", crowd.steps, crowd.start);
            let expected = format!("1 step or more of steps 0 to {}", self.num_steps - 1);
            return Err(EvalError::setting("the flash crowd", got, expected));
        }
        self.flash_crowd = Some(crowd);
        Ok(self)
    }

    /// Another seed, another load.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The counts, `[S, L, E]`. Each layer of each step sums to the tokens.
    ///
    /// # Errors
    ///
    /// None that a workload which was made without an error could run into.
    pub fn generate(&self) -> Result<LoadTrace, EvalError> {
        let mut steps =
            vec![Vec::with_capacity(self.num_layers * self.num_experts); self.num_steps];
        for layer in 0..self.num_layers {
            let mut generator = Layer::new(self, layer as u64);
            for (step, values) in steps.iter_mut().enumerate() {
                let counts = generator.step(self, step);
                values.extend(counts.into_iter().map(|count| count as f64));
            }
        }
        let load = |values| ExpertLoad::new(self.num_layers, self.num_experts, values);
        let steps = steps.into_iter().map(load).collect::<Result<_, _>>()?;
        Ok(LoadTrace::new(steps)?)
    }
}

fn fraction(what: &'static str, value: f64) -> Result<f64, EvalError> {
    if (0.0..=1.0).contains(&value) {
        Ok(value)
    } else {
        Err(EvalError::setting(what, value, "0 to 1"))
    }
}

/// The state of one layer from step to step.
struct Layer {
    /// Draws how popularity moves.
    popularity: ChaCha8Rng,
    /// Draws the tokens.
    tokens: ChaCha8Rng,
    levels: Levels,
    /// The latent values of each domain, `[domains, E]`.
    latent: Vec<Vec<f64>>,
    crowded: usize,
}

impl Layer {
    fn new(workload: &Workload, layer: u64) -> Self {
        // Streams of their own, so that neither layers nor steps shift each other's numbers.
        let stream = |kind: u64| {
            let mut rng = ChaCha8Rng::seed_from_u64(workload.seed);
            rng.set_stream(layer * 2 + kind);
            rng
        };
        let mut popularity = stream(0);
        let experts = workload.num_experts;
        let crowded = uniform_index(&mut popularity, experts);
        let levels = workload
            .profile
            .levels(experts, workload.tokens, || uniform(&mut popularity));
        let domains = 0..workload.domains;
        let latent = domains.map(|_| normals(&mut popularity, experts)).collect();
        Self {
            popularity,
            tokens: stream(1),
            levels,
            latent,
            crowded,
        }
    }

    /// The counts of the next step, `[E]`.
    fn step(&mut self, workload: &Workload, step: usize) -> Vec<u64> {
        if step > 0 && workload.drift > 0.0 {
            self.drift(workload.drift);
        }
        let domain = step / workload.domain_steps % workload.domains;
        let mut shares = self.levels.shares(&self.latent[domain]);
        if let Some(crowd) = workload.flash_crowd.filter(|crowd| crowd.is_on(step)) {
            for share in &mut shares {
                *share *= 1.0 - crowd.share;
            }
            shares[self.crowded] += crowd.share;
        }
        if let Some(concentration) = workload.concentration {
            shares = dirichlet(&mut self.tokens, &shares, concentration);
        }
        multinomial(&mut self.tokens, workload.tokens, &shares)
    }

    fn drift(&mut self, drift: f64) {
        let keep = 1.0 - drift;
        let fresh = (1.0 - keep * keep).sqrt();
        for latent in &mut self.latent {
            let noise = normals(&mut self.popularity, latent.len());
            for (z, e) in latent.iter_mut().zip(noise) {
                *z = keep * *z + fresh * e;
            }
        }
    }
}
