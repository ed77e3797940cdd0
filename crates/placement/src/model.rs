use moekit_routing::{Placement, Rank, Topology};
use serde::{Deserialize, Serialize};

use crate::{MigrationBudget, PlacementError, PlacementRequest};

/// The placement of every MoE layer of a model over one EP group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelPlacement {
    layers: Vec<Placement>,
}

impl ModelPlacement {
    /// A placement per layer.
    ///
    /// # Errors
    ///
    /// If there is no layer, or layers differ in experts or ranks.
    pub fn new(layers: Vec<Placement>) -> Result<Self, PlacementError> {
        let first = layers.first().ok_or(PlacementError::NoLayers)?;
        let (experts, ranks) = (first.num_logical_experts(), first.num_ranks());
        for (i, layer) in layers.iter().enumerate() {
            for (what, got, expected) in [
                ("logical experts", layer.num_logical_experts(), experts),
                ("ranks", layer.num_ranks(), ranks),
            ] {
                if got != expected {
                    return Err(PlacementError::Shape {
                        what: format!("number of {what} in the placement of layer {i}"),
                        got,
                        expected,
                    });
                }
            }
        }
        Ok(Self { layers })
    }

    /// The layers in order.
    pub fn layers(&self) -> &[Placement] {
        &self.layers
    }

    /// The layers in order, owned.
    pub fn into_layers(self) -> Vec<Placement> {
        self.layers
    }

    /// Number of MoE layers.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Logical experts per layer.
    pub fn num_logical_experts(&self) -> usize {
        self.layers[0].num_logical_experts()
    }

    /// Ranks of the EP group.
    pub fn num_ranks(&self) -> usize {
        self.layers[0].num_ranks()
    }

    /// Whether the placement has the request's layers, experts and ranks.
    ///
    /// # Errors
    ///
    /// What differs, if anything.
    pub fn check_shape(&self, request: &PlacementRequest<'_>) -> Result<(), PlacementError> {
        same("number of layers", self.num_layers(), request.num_layers())?;
        let experts = request.num_logical_experts();
        same(
            "number of logical experts",
            self.num_logical_experts(),
            experts,
        )?;
        same(
            "number of ranks",
            self.num_ranks(),
            request.topology().num_ranks(),
        )
    }

    /// Whether every rank has the request's number of slots in every layer.
    ///
    /// # Errors
    ///
    /// The first rank that differs, if any.
    pub fn check_slots(&self, request: &PlacementRequest<'_>) -> Result<(), PlacementError> {
        for (l, layer) in self.layers.iter().enumerate() {
            for (r, &slots) in request.slots_per_rank().iter().enumerate() {
                let got = layer
                    .slot_range(Rank::new(r))
                    .map_or(0, |range| range.len());
                if got != slots {
                    let what = format!("number of slots of rank {r} in layer {l}");
                    return same(what, got, slots);
                }
            }
        }
        Ok(())
    }
}

fn same(what: impl Into<String>, got: usize, expected: usize) -> Result<(), PlacementError> {
    if got == expected {
        return Ok(());
    }
    Err(PlacementError::Shape {
        what: what.into(),
        got,
        expected,
    })
}

/// A placement as it is stored, versioned.
///
/// ```json
/// {"format": "moekit-placement", "version": 1, "num_logical_experts": 4, "num_ranks": 2,
///  "layers": [{"physical_to_logical": [0, 2, 1, 3], "rank_offsets": [0, 2, 4]}]}
/// ```
///
/// ```
/// use moekit_placement::{ModelPlacement, PlacementFile};
///
/// let text = r#"{"format":"moekit-placement","version":1,"num_logical_experts":2,"num_ranks":1,
///                "layers":[{"physical_to_logical":[0,1],"rank_offsets":[0,2]}]}"#;
/// let file: PlacementFile = serde_json::from_str(text)?;
/// let placement = ModelPlacement::try_from(file)?;
/// assert_eq!(placement.num_layers(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlacementFile {
    /// `moekit-placement`.
    format: String,
    /// 1.
    version: u32,
    /// Logical experts per layer.
    num_logical_experts: usize,
    /// Ranks of the EP group.
    num_ranks: usize,
    /// One placement per MoE layer.
    layers: Vec<LayerFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct LayerFile {
    /// The logical expert in each slot.
    physical_to_logical: Vec<usize>,
    /// The first slot of each rank, and the number of slots.
    rank_offsets: Vec<usize>,
}

impl PlacementFile {
    /// The name of the format.
    pub const FORMAT: &'static str = "moekit-placement";
    /// The version that this crate reads and writes.
    pub const VERSION: u32 = 1;
}

impl From<&ModelPlacement> for PlacementFile {
    fn from(placement: &ModelPlacement) -> Self {
        Self {
            format: Self::FORMAT.to_owned(),
            version: Self::VERSION,
            num_logical_experts: placement.num_logical_experts(),
            num_ranks: placement.num_ranks(),
            layers: placement
                .layers
                .iter()
                .map(|layer| LayerFile {
                    physical_to_logical: layer
                        .physical_to_logical()
                        .iter()
                        .map(|e| e.index())
                        .collect(),
                    rank_offsets: layer.rank_offsets().to_vec(),
                })
                .collect(),
        }
    }
}

impl TryFrom<PlacementFile> for ModelPlacement {
    type Error = PlacementError;

    fn try_from(file: PlacementFile) -> Result<Self, PlacementError> {
        if file.format != PlacementFile::FORMAT {
            return Err(PlacementError::Format {
                what: "the format of a placement file",
                got: file.format,
                expected: PlacementFile::FORMAT.to_owned(),
            });
        }
        if file.version != PlacementFile::VERSION {
            return Err(PlacementError::Format {
                what: "the version of a placement file",
                got: file.version.to_string(),
                expected: PlacementFile::VERSION.to_string(),
            });
        }
        let layers = file
            .layers
            .into_iter()
            .map(|l| {
                Placement::new(
                    file.num_logical_experts,
                    l.physical_to_logical,
                    l.rank_offsets,
                )
            })
            .collect::<Result<_, _>>()?;
        let placement = Self::new(layers)?;
        if placement.num_ranks() != file.num_ranks {
            return Err(PlacementError::Shape {
                what: "number of ranks in rank_offsets".to_owned(),
                got: placement.num_ranks(),
                expected: file.num_ranks,
            });
        }
        Ok(placement)
    }
}

impl<'a> PlacementRequest<'a> {
    /// A request for what `current` is: same layers, experts, slots per rank, with `current` as
    /// the placement in force.
    ///
    /// # Errors
    ///
    /// If the topology has another number of ranks, or layers differ in their slots per rank.
    pub fn like(
        current: &'a ModelPlacement,
        topology: &'a Topology,
    ) -> Result<Self, PlacementError> {
        let offsets = current.layers[0].rank_offsets();
        let slots = offsets.windows(2).map(|w| w[1] - w[0]).collect();
        let request = Self::new(
            current.num_layers(),
            current.num_logical_experts(),
            topology,
        )?
        .with_slots_per_rank(slots)?
        .with_current(current, MigrationBudget::Unlimited)?;
        current.check_slots(&request)?;
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<ModelPlacement, String> {
        let file: PlacementFile = serde_json::from_str(text).map_err(|e| e.to_string())?;
        ModelPlacement::try_from(file).map_err(|e| e.to_string())
    }

    #[test]
    fn files_round_trip() {
        let layer = Placement::from_ranks(3, &[vec![0, 2], vec![1]]).unwrap();
        let model = ModelPlacement::new(vec![layer.clone(), layer]).unwrap();
        let text = serde_json::to_string(&PlacementFile::from(&model)).unwrap();
        assert_eq!(file(&text).unwrap(), model);
    }

    #[test]
    fn files_of_another_kind_are_refused() {
        let with = |format, version, ranks| {
            file(&format!(
                r#"{{"format":"{format}","version":{version},"num_logical_experts":1,"num_ranks":{ranks},
                    "layers":[{{"physical_to_logical":[0],"rank_offsets":[0,1]}}]}}"#
            ))
        };
        assert!(with("moekit-placement", 1, 1).is_ok());
        assert!(
            with("other", 1, 1)
                .unwrap_err()
                .contains("`other`, expected `moekit-placement`")
        );
        assert!(
            with("moekit-placement", 2, 1)
                .unwrap_err()
                .contains("`2`, expected `1`")
        );
        assert!(
            with("moekit-placement", 1, 2)
                .unwrap_err()
                .contains("got 1, expected 2")
        );
        assert!(file(r#"{"format":"moekit-placement"}"#).is_err());
    }

    #[test]
    fn layers_must_agree() {
        let a = Placement::from_ranks(1, &[[0]]).unwrap();
        let b = Placement::from_ranks(1, &[[0], [0]]).unwrap();
        let error = ModelPlacement::new(vec![a, b]).unwrap_err().to_string();
        assert!(
            error.contains("ranks in the placement of layer 1"),
            "{error}"
        );
        assert_eq!(ModelPlacement::new(vec![]), Err(PlacementError::NoLayers));
    }
}
