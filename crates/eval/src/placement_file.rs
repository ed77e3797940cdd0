//! Placements as files: moekit's own format, [`PlacementFile`].

use std::path::Path;

use moekit_placement::{ModelPlacement, PlacementFile};

use crate::{EvalError, file};

/// Reads a `moekit-placement` JSON file.
///
/// # Errors
///
/// If the file cannot be read, is of another format or version, or holds no valid placement.
pub fn read(path: impl AsRef<Path>) -> Result<ModelPlacement, EvalError> {
    let path = path.as_ref();
    let bytes = file::read(path)?;
    let file: PlacementFile = serde_json::from_slice(&bytes).map_err(|error| {
        let message = format!(
            "no placement of the format `{}`: {error}",
            PlacementFile::FORMAT
        );
        EvalError::content(path, message)
    })?;
    ModelPlacement::try_from(file).map_err(|error| EvalError::content(path, error))
}

/// Writes a `moekit-placement` JSON file, whole or not at all.
///
/// # Errors
///
/// If the file cannot be written.
pub fn write(path: impl AsRef<Path>, placement: &ModelPlacement) -> Result<(), EvalError> {
    let path = path.as_ref();
    let mut bytes = serde_json::to_vec(&PlacementFile::from(placement))
        .map_err(|error| EvalError::content(path, error))?;
    bytes.push(b'\n');
    file::write_whole(path, &bytes)
}

#[cfg(test)]
mod tests {
    use moekit_placement::Placement;

    use super::*;

    #[test]
    fn round_trip_and_errors_that_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.json");
        let layer = Placement::from_ranks(3, &[vec![0, 2], vec![1]]).unwrap();
        let placement = ModelPlacement::new(vec![layer]).unwrap();
        write(&path, &placement).unwrap();
        assert_eq!(read(&path).unwrap(), placement);

        for (text, part) in [
            ("{", "EOF"),
            ("[[1, 2]]", "no placement of the format `moekit-placement`"),
            ("{\"format\":\"x\"}", "missing field"),
            (
                r#"{"format":"moekit-placement","version":1,"num_logical_experts":2,"num_ranks":1,
                    "layers":[{"physical_to_logical":[0,0],"rank_offsets":[0,2]}]}"#,
                "logical expert 1",
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(
                error.contains("plan.json") && error.contains(part),
                "{error}"
            );
        }
    }
}
