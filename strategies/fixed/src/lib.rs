//! The placement that the user gives.

use std::fs;
use std::path::PathBuf;

use moekit_placement::{
    Capabilities, ModelPlacement, PlacementError, PlacementFile, PlacementRequest,
    PlacementStrategy, register_strategy, typetag,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const NAME: &str = "fixed";

/// A placement from a file, or written out in the configuration: exactly one of the two.
///
/// The placement decides the slots of each rank. It must have the layers, experts and ranks that
/// are asked for; if slots were asked for as well, those too.
///
/// ```
/// use moekit_placement::{Placement, PlacementRequest, PlacementStrategy, Topology};
/// use moekit_strategy_fixed::Fixed;
///
/// let fixed: Fixed = serde_json::from_str(r#"{"placement": {
///     "format": "moekit-placement", "version": 1, "num_logical_experts": 3, "num_ranks": 2,
///     "layers": [{"physical_to_logical": [2, 0, 1], "rank_offsets": [0, 1, 3]}]}}"#)?;
/// let topology = Topology::new(2)?;
/// let placement = fixed.place(&PlacementRequest::new(1, 3, &topology)?)?;
/// assert_eq!(placement.layers()[0], Placement::from_ranks(3, &[vec![2], vec![0, 1]])?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Fixed {
    /// A placement file (format `moekit-placement`, JSON), as `moekit plan --out` writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub file: Option<PathBuf>,
    /// The same, in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementFile>,
}

impl Fixed {
    fn read(&self) -> Result<ModelPlacement, PlacementError> {
        match (&self.file, &self.placement) {
            (None, Some(placement)) => ModelPlacement::try_from(placement.clone()),
            (Some(path), None) => {
                let unreadable = |e: &dyn std::fmt::Display| {
                    PlacementError::precondition(NAME, format!("{}: {e}", path.display()))
                };
                let text = fs::read_to_string(path).map_err(|e| unreadable(&e))?;
                let file: PlacementFile =
                    serde_json::from_str(&text).map_err(|e| unreadable(&e))?;
                ModelPlacement::try_from(file).map_err(|e| unreadable(&e))
            }
            (given, _) => Err(PlacementError::Settings {
                strategy: NAME.to_owned(),
                message: format!(
                    "needs either `file` or `placement`, got {}",
                    if given.is_some() { "both" } else { "neither" }
                ),
            }),
        }
    }
}

#[typetag::serde(name = "fixed")]
impl PlacementStrategy for Fixed {
    fn place(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
        let placement = self.read()?;
        let mut checked = placement.check_shape(request);
        if request.slots_requested() {
            checked = checked.and_then(|()| placement.check_slots(request));
        }
        checked
            .map_err(|e| PlacementError::precondition(NAME, format!("the placement given: {e}")))?;
        Ok(placement)
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.decides_slots = true;
        capabilities
    }
}

register_strategy! {
    Fixed,
    name: "fixed",
    summary: "The placement that the user gives, from a file or in place",
    example: Fixed { file: Some("placement.json".into()), placement: None },
}

#[cfg(test)]
mod tests {
    use moekit_placement::{Placement, Topology};

    use super::*;

    fn given() -> PlacementFile {
        let layer = Placement::from_ranks(2, &[vec![1], vec![0, 1]]).unwrap();
        PlacementFile::from(&ModelPlacement::new(vec![layer]).unwrap())
    }

    fn place(
        fixed: &Fixed,
        experts: usize,
        ranks: usize,
        slots: Option<usize>,
    ) -> Result<ModelPlacement, String> {
        let topology = Topology::new(ranks).unwrap();
        let mut request = PlacementRequest::new(1, experts, &topology).unwrap();
        if let Some(slots) = slots {
            request = request.with_num_slots(slots).unwrap();
        }
        fixed.place(&request).map_err(|e| e.to_string())
    }

    #[test]
    fn files_are_read_and_their_faults_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.json");
        let fixed = Fixed {
            file: Some(path.clone()),
            placement: None,
        };
        assert!(place(&fixed, 2, 2, None).unwrap_err().contains("p.json"));
        fs::write(&path, "{\"format\": ").unwrap();
        assert!(place(&fixed, 2, 2, None).unwrap_err().contains("EOF"));
        fs::write(&path, serde_json::to_string(&given()).unwrap()).unwrap();
        assert_eq!(
            place(&fixed, 2, 2, None).unwrap().layers()[0].num_physical_experts(),
            3
        );
    }

    #[test]
    fn what_was_asked_must_fit() {
        let fixed = Fixed {
            file: None,
            placement: Some(given()),
        };
        assert!(
            place(&fixed, 3, 2, None)
                .unwrap_err()
                .contains("logical experts: got 2, expected 3")
        );
        assert!(
            place(&fixed, 2, 3, None)
                .unwrap_err()
                .contains("ranks: got 2, expected 3")
        );
        assert!(
            place(&fixed, 2, 2, Some(3))
                .unwrap_err()
                .contains("slots of rank 0 in layer 0: got 1, expected 2")
        );
    }

    #[test]
    fn exactly_one_source() {
        let neither = Fixed::default();
        assert!(place(&neither, 2, 2, None).unwrap_err().contains("neither"));
        let both = Fixed {
            file: Some("x".into()),
            placement: Some(given()),
        };
        assert!(place(&both, 2, 2, None).unwrap_err().contains("both"));
    }
}
