//! vLLM's choice of an expert placement strategy.
//!
//! vLLM knows `linear` and `round_robin` and replaces the second by the first in many cases, with
//! a warning. moekit itself never does that; these rules (vLLM 0.33,
//! `determine_expert_placement_strategy`) tell what a vLLM deployment would run.

use thiserror::Error;

use crate::PlacementError;

/// A strategy of vLLM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExpertPlacement {
    /// Contiguous experts per rank.
    Linear,
    /// Expert `g` on rank `g % ranks`.
    RoundRobin,
}

/// How vLLM is deployed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// Size of the EP group; 1 is no expert parallelism.
    pub ep_size: usize,
    /// Expert groups of the gate.
    pub num_expert_groups: Option<usize>,
    /// `num_redundant_experts`.
    pub num_redundant_experts: usize,
    /// `enable_eplb`.
    pub enable_eplb: bool,
    /// The all-to-all backend, if tokens are dispatched at all (DP, PCP or SP above 1).
    pub all2all_backend: Option<String>,
}

/// Why vLLM runs `linear` although `round_robin` was requested.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FallbackReason {
    /// There is only one rank.
    #[error("the EP group has a single rank")]
    SingleRank,
    /// The gate has no expert groups.
    #[error("the model has no expert groups (num_expert_group = {0:?}); more than 1 is required")]
    NoExpertGroups(Option<usize>),
    /// There are redundant experts.
    #[error("there are {0} redundant experts; none may be configured")]
    RedundantExperts(usize),
    /// EPLB starts from a linear placement.
    #[error("EPLB is enabled")]
    Eplb,
    /// The backend computes a rank as `id / experts_per_rank`.
    #[error(
        "all-to-all backend `{0}` does not read routing tables; deepep_low_latency and nixl_ep do"
    )]
    Backend(String),
}

/// What vLLM runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The strategy in effect.
    pub strategy: ExpertPlacement,
    /// Why it is not the requested one, if it is not.
    pub fallback: Option<FallbackReason>,
}

/// What vLLM would make of a requested strategy.
///
/// ```
/// use moekit_placement::compat::vllm::*;
///
/// let deployment = Deployment {
///     ep_size: 8,
///     num_expert_groups: None,
///     num_redundant_experts: 0,
///     enable_eplb: false,
///     all2all_backend: None,
/// };
/// let resolved = resolve("round_robin", &deployment)?;
/// assert_eq!(resolved.strategy, ExpertPlacement::Linear);
/// assert_eq!(resolved.fallback, Some(FallbackReason::NoExpertGroups(None)));
/// # Ok::<(), moekit_placement::PlacementError>(())
/// ```
///
/// # Errors
///
/// If vLLM has no such strategy.
pub fn resolve(requested: &str, deployment: &Deployment) -> Result<Resolved, PlacementError> {
    let fallback = match requested {
        "linear" => {
            return Ok(Resolved {
                strategy: ExpertPlacement::Linear,
                fallback: None,
            });
        }
        "round_robin" => fallback(deployment),
        other => {
            return Err(PlacementError::Format {
                what: "the expert placement strategy of vLLM",
                got: other.to_owned(),
                expected: "linear` or `round_robin".to_owned(),
            });
        }
    };
    let strategy = match fallback {
        None => ExpertPlacement::RoundRobin,
        Some(_) => ExpertPlacement::Linear,
    };
    Ok(Resolved { strategy, fallback })
}

fn fallback(deployment: &Deployment) -> Option<FallbackReason> {
    if deployment.ep_size <= 1 {
        return Some(FallbackReason::SingleRank);
    }
    if deployment
        .num_expert_groups
        .is_none_or(|groups| groups <= 1)
    {
        return Some(FallbackReason::NoExpertGroups(deployment.num_expert_groups));
    }
    if deployment.num_redundant_experts != 0 {
        return Some(FallbackReason::RedundantExperts(
            deployment.num_redundant_experts,
        ));
    }
    if deployment.enable_eplb {
        return Some(FallbackReason::Eplb);
    }
    match deployment.all2all_backend.as_deref() {
        None | Some("deepep_low_latency" | "nixl_ep") => None,
        Some(backend) => Some(FallbackReason::Backend(backend.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grouped() -> Deployment {
        Deployment {
            ep_size: 4,
            num_expert_groups: Some(8),
            num_redundant_experts: 0,
            enable_eplb: false,
            all2all_backend: None,
        }
    }

    #[test]
    fn round_robin_survives_only_if_all_rules_hold() {
        let with = |change: fn(&mut Deployment)| {
            let mut deployment = grouped();
            change(&mut deployment);
            resolve("round_robin", &deployment).unwrap().fallback
        };
        assert_eq!(with(|_| {}), None);
        assert_eq!(with(|d| d.all2all_backend = Some("nixl_ep".into())), None);
        assert_eq!(with(|d| d.ep_size = 1), Some(FallbackReason::SingleRank));
        assert_eq!(
            with(|d| d.num_expert_groups = Some(1)),
            Some(FallbackReason::NoExpertGroups(Some(1)))
        );
        assert_eq!(
            with(|d| d.num_redundant_experts = 3),
            Some(FallbackReason::RedundantExperts(3))
        );
        assert_eq!(with(|d| d.enable_eplb = true), Some(FallbackReason::Eplb));
        assert_eq!(
            with(|d| d.all2all_backend = Some("deepep_high_throughput".into())),
            Some(FallbackReason::Backend("deepep_high_throughput".into()))
        );
    }

    #[test]
    fn linear_is_linear_and_others_are_unknown() {
        assert_eq!(resolve("linear", &grouped()).unwrap().fallback, None);
        let error = resolve("eplb", &grouped()).unwrap_err().to_string();
        assert!(
            error.contains("`eplb`, expected `linear` or `round_robin`"),
            "{error}"
        );
    }
}
