//! Load files as users have them: written by the original libraries, broken, or hostile.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use moekit_eval::load_file::{self, LoadFile};
use moekit_placement::{ExpertLoad, LoadTrace};
use proptest::prelude::*;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// `0, 1, 2, ..` in a shape.
fn counting(shape: &[usize]) -> LoadFile {
    let load = |from: usize, layers: usize, experts: usize| {
        let values = (from..from + layers * experts).map(|v| v as f64).collect();
        ExpertLoad::new(layers, experts, values).unwrap()
    };
    match *shape {
        [layers, experts] => load(0, layers, experts).into(),
        [steps, layers, experts] => {
            let step = |s| load(s * layers * experts, layers, experts);
            LoadTrace::new((0..steps).map(step).collect())
                .unwrap()
                .into()
        }
        _ => unreachable!(),
    }
}

thread_local! {
    static FOLDER: tempfile::TempDir = tempfile::tempdir().unwrap();
}

/// Writes a file of this name and content, and reads it as a load.
fn read_bytes(name: &str, bytes: &[u8]) -> Result<LoadFile, String> {
    let path = FOLDER.with(|folder| folder.path().join(name));
    std::fs::write(&path, bytes).unwrap();
    let result = load_file::read(&path).map_err(|error| error.to_string());
    if let Err(error) = &result {
        assert!(error.contains(name), "the error names the file: {error}");
    }
    result
}

fn error_of(name: &str, bytes: impl AsRef<[u8]>) -> String {
    match read_bytes(name, bytes.as_ref()) {
        Ok(load) => panic!("{name} was read as {load:?}"),
        Err(error) => error,
    }
}

/// The error contains each of these.
#[track_caller]
fn assert_says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

#[test]
fn files_of_the_original_libraries() {
    for name in [
        "i64.npy",
        "f16.npy",
        "u16_big_endian.npy",
        "savetxt.csv",
        "vllm.safetensors",
    ] {
        assert_eq!(
            load_file::read(data(name)).unwrap(),
            counting(&[2, 3]),
            "{name}"
        );
    }
    for name in [
        "f32_trace_fortran.npy",
        "bf16_trace.safetensors",
        "load_history.json",
    ] {
        assert_eq!(
            load_file::read(data(name)).unwrap(),
            counting(&[2, 2, 3]),
            "{name}"
        );
    }
    assert_eq!(
        load_file::read(data("transposed.pt")).unwrap(),
        counting(&[2, 3])
    );
    assert_eq!(
        load_file::read(data("sglang_stat.pt")).unwrap(),
        counting(&[2, 3, 4])
    );
}

#[test]
fn tensors_are_chosen_by_name() {
    let two = data("two_models.safetensors");
    let with = |suffix: &str| load_file::read(format!("{}{suffix}", two.display()));
    assert_says(
        &with("").unwrap_err().to_string(),
        &["2 tensors", "`draft`, `target`", "#NAME"],
    );
    assert_eq!(with("#target").unwrap(), counting(&[2, 3]));
    assert_eq!(
        with("#draft").unwrap().total().layer(0),
        Some(&[1.0, 2.0, 3.0][..])
    );
    assert_says(
        &with("#other").unwrap_err().to_string(),
        &["`other`", "`draft`, `target`"],
    );
    let csv = format!("{}#x", data("savetxt.csv").display());
    assert_says(
        &load_file::read(csv).unwrap_err().to_string(),
        &["`#x`", "CSV has no names"],
    );
}

#[test]
fn records_of_one_rank_are_refused() {
    let error = load_file::read(data("sglang_per_pass.pt"))
        .unwrap_err()
        .to_string();
    assert_says(
        &error,
        &["sglang_per_pass.pt", "one rank", "recorder-mode stat"],
    );
}

#[test]
fn json_shapes() {
    for (text, shape) in [
        ("[[0,1,2],[3,4,5]]", &[2, 3][..]),
        ("[[[0,1.0]],[[2,3e0]]]", &[2, 1, 2]),
        (r#"{"logical_count":[[0,1]],"note":[1,[2]]}"#, &[1, 2]),
        (r#" {"rank":0,"logical_count":[[[0]],[[1]]]}"#, &[2, 1, 1]),
        (
            r#"{"load_history":[{"logical_expert_load":[[0],[1]],"t":0.5}]}"#,
            &[1, 2, 1],
        ),
    ] {
        assert_eq!(
            read_bytes("x.json", text.as_bytes()).unwrap(),
            counting(shape),
            "{text}"
        );
    }
}

#[test]
fn bad_json_is_refused_with_its_place() {
    for (text, parts) in [
        ("", &["EOF"][..]),
        ("[[1,2]", &["EOF"]),
        ("[[1,NaN]]", &["line 1 column 5", "near `NaN]]`"]),
        ("[[1,null]]", &["null", "number"]),
        ("[[1,\"2\"]]", &["string \"2\""]),
        (
            "[[1,2],[3]]",
            &["a list of 1 where the lists before have 2"],
        ),
        ("[[1,2],3]", &["the number 3 where a list is expected"]),
        ("[[1,[2]]]", &["a list where a number is expected"]),
        ("[[[[1]]]]", &["a list where a number is expected"]),
        ("[1,2]", &["[steps, layers, experts]", "shape [2]"]),
        ("[]", &["shape [0]"]),
        ("[[]]", &["shape [1, 0] holds no load"]),
        ("[[[]],[[]]]", &["shape [2, 1, 0]"]),
        ("[[1,-2]]", &["layer 0, expert 1 is -2"]),
        ("[[[1]],[[-0.5]]]", &["step 1", "layer 0, expert 0 is -0.5"]),
        ("[[1e999]]", &["out of range"]),
        ("7", &["a list of lists"]),
        (
            r#"{"counts":[[1]]}"#,
            &["[\"counts\"]", "`logical_count` or `load_history`"],
        ),
        (r#"{"logical_count":3}"#, &["the number 3"]),
        (
            r#"{"logical_count":[[1]],"load_history":[]}"#,
            &["second load, `load_history`"],
        ),
        (
            r#"{"load_history":[{"load":[[1]]}]}"#,
            &["missing field `logical_expert_load`"],
        ),
        (
            r#"{"load_history":[{"logical_expert_load":[1]}]}"#,
            &["[layers, experts]"],
        ),
        (r#"{"load_history":[]}"#, &["shape [0]"]),
    ] {
        assert_says(&error_of("x.json", text), parts);
    }
    assert!(error_of("x.json", "[".repeat(1 << 20)).contains("a list where a number"));
    assert!(error_of("x.json", format!("{{\"a\":{}", "[".repeat(1 << 20))).contains("EOF"));
}

#[test]
fn csv_with_and_without_columns() {
    for (text, shape) in [
        ("0,1,2\n3,4,5\n", &[2, 3][..]),
        ("# counts\n0, 1, 2\n\n3, 4, 5", &[2, 3]),
        ("layer,e0,e1\n0,0,1\n1,2,3\n", &[2, 2]),
        (
            "Step,Layer,0,1\n0,0,0,1\n0,1,2,3\n1,0,4,5\n1,1,6,7\n",
            &[2, 2, 2],
        ),
    ] {
        assert_eq!(
            read_bytes("x.csv", text.as_bytes()).unwrap(),
            counting(shape),
            "{text}"
        );
    }
}

#[test]
fn bad_csv_is_refused_with_its_line() {
    for (text, parts) in [
        ("", &["shape [0, 0]"][..]),
        ("1,2\n3\n", &["record 1", "line: 2", "1 field"]),
        ("1,2\n3,x\n", &["line 2, column 2: `x` is not a number"]),
        ("a,b\n1,2\n", &["line 1, column 1: `a` is not a number"]),
        ("1,nan\n", &["layer 0, expert 1 is NaN"]),
        ("1,inf\n", &["layer 0, expert 1 is inf"]),
        ("1,-3\n", &["layer 0, expert 1 is -3"]),
        ("step,layer,a\n0,0,1\n1,0,-1\n", &["step 1", "is -1"]),
        (
            "step,layer,a\n0,0,1\n0,2,1\n",
            &["line 3 is step 0, layer 2; expected step 0, layer 1"],
        ),
        (
            "step,layer,a\n0,0,1\n0,1,1\n1,0,1\n",
            &["the last step has 1 layers, the first has 2"],
        ),
        ("step,layer,a\n1,0,1\n", &["line 2 is step 1"]),
        ("layer,a\n0.5,1\n", &["`0.5` is not a step or layer"]),
        ("layer,a\n", &["shape [0, 0]"]),
    ] {
        assert_says(&error_of("x.csv", text), parts);
    }
    assert!(error_of("x.csv", b"1,\xff\n").contains("UTF-8"));
}

/// A `.npy` file with this header and 64 bytes of data.
fn npy(header: &str) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend([0; 64]);
    bytes
}

#[test]
fn bad_npy_is_refused_before_anything_is_allocated() {
    let header = |descr: &str, shape: &str| {
        npy(&format!(
            "{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"
        ))
    };
    assert!(read_bytes("x.npy", &header("'<f8'", "(2, 4)")).is_ok());
    for (bytes, parts) in [
        (header("'<f8'", "(8,)"), &["shape [8]"][..]),
        (header("'<f8'", "()"), &["shape []"]),
        (header("'<f8'", "(4294967296, 4294967296)"), &["more than"]),
        (
            header("'<f8'", "(18446744073709551615, 18446744073709551615, 3)"),
            &["more than"],
        ),
        (
            header("'<f8'", "(99999999999999999999999999, 2)"),
            &["no `shape` of integers"],
        ),
        (header("'<f8'", "(-1, 2)"), &["no `shape` of integers"]),
        (
            header("'<f8'", "(16384, 16384)"),
            &["needs at least 268435456 bytes", "64"],
        ),
        (
            header("'<f8'", "(3, 3)"),
            &["ends before the last number", "[3, 3]", "'<f8'"],
        ),
        (header("'<f8'", "(0, 3)"), &["shape [0, 3]"]),
        (
            header("'<c16'", "(2, 2)"),
            &["'<c16'", "integers or floats"],
        ),
        (header("'|O'", "(2, 2)"), &["'|O'"]),
        (header("'<U4'", "(2, 2)"), &["'<U4'"]),
        (header("[('a', '<f8')]", "(2, 2)"), &["[('a', '<f8'), ]"]),
        (npy("{'descr': '<f8'}"), &["no `shape`"]),
        (npy("not python"), &["not a Python literal"]),
        (npy(&"(".repeat(1000)), &["not a Python literal"]),
        (
            npy(&format!("{}1{}", "(".repeat(500), ",)".repeat(500)))[..900].to_vec(),
            &["header"],
        ),
        (
            b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec(),
            &["a header of 4294967295 bytes"],
        ),
        (
            b"\x93NUMPY\x09\x00\x01\x00".to_vec(),
            &["version 1, 2 or 3"],
        ),
        (b"numbers".to_vec(), &["version 1, 2 or 3"]),
        (vec![], &["version 1, 2 or 3"]),
    ] {
        assert_says(&error_of("x.npy", &bytes), parts);
    }
    assert_says(
        &load_file::read(data("bool.npy")).unwrap_err().to_string(),
        &["'|b1'"],
    );
}

fn safetensors_of(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(vec![0; data]);
    bytes
}

#[test]
fn bad_safetensors_are_refused() {
    let one = |dtype: &str, shape: &str, end: usize| {
        format!(r#"{{"x":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
    };
    assert!(read_bytes("x.safetensors", &safetensors_of(&one("F32", "[1,2]", 8), 8)).is_ok());
    for (bytes, parts) in [
        (
            safetensors_of(&one("F32", "[1,2]", 8), 7),
            &["incomplete"][..],
        ),
        (
            safetensors_of(&one("F32", "[4294967296,4294967296]", 8), 8),
            &["overflow"],
        ),
        (safetensors_of(&one("F32", "[2]", 8), 8), &["shape [2]"]),
        (
            safetensors_of(&one("BOOL", "[2,2]", 4), 4),
            &["BOOL", "integers or floats"],
        ),
        (safetensors_of("{}", 0), &["holds no tensor"]),
        (vec![0xff; 40], &["header"]),
        (vec![1, 2], &["header"]),
    ] {
        let error = error_of("x.safetensors", &bytes).to_lowercase();
        let parts: Vec<String> = parts.iter().map(|p| p.to_lowercase()).collect();
        assert_says(
            &error,
            &parts.iter().map(String::as_str).collect::<Vec<_>>(),
        );
    }
}

#[test]
fn names_and_contents_must_agree() {
    assert_says(
        &error_of("x.txt", "[[1]]"),
        &["`.txt`", ".json, .csv, .npy, .safetensors, .pt"],
    );
    assert_says(&error_of("load", "[[1]]"), &["(none)", ".json"]);
    // What is only read is not offered to who writes.
    let load = LoadFile::from(ExpertLoad::from_rows(&[[1.0]]).unwrap());
    let error = load_file::write("x.txt", &load).unwrap_err().to_string();
    assert!(
        error.ends_with("known are .json, .csv, .npy, .safetensors"),
        "{error}"
    );
    assert_says(
        &error_of("x.json", npy("{}")),
        &["the name says JSON, the content is npy"],
    );
    assert_says(
        &error_of("x.csv", "[[1]]"),
        &["the name says CSV, the content is JSON"],
    );
    let torch = std::fs::read(data("sglang_stat.pt")).unwrap();
    assert_says(
        &error_of("x.npy", &torch),
        &["the name says npy, the content is torch"],
    );
    let missing = load_file::read("no/such.json").unwrap_err().to_string();
    assert_says(&missing, &["no/such.json"]);
    assert!(
        read_bytes("X.JSON", b"[[1]]").is_ok(),
        "extensions in capitals"
    );
    assert!(
        read_bytes("a#b.json", b"[[1]]").is_ok(),
        "a file whose name holds a #"
    );
}

/// Files that end early, wherever: an error, never a panic or a shorter load.
#[test]
fn truncated_files_are_refused() {
    for name in [
        "i64.npy",
        "f32_trace_fortran.npy",
        "two_models.safetensors",
        "bf16_trace.safetensors",
        "load_history.json",
        "sglang_stat.pt",
        "transposed.pt",
    ] {
        let whole = std::fs::read(data(name)).unwrap();
        for length in (0..whole.len()).step_by(1 + whole.len() / 300) {
            error_of(name, &whole[..length]);
        }
    }
}

/// Files with a wrong byte, wherever: a load or an error, never a panic.
#[test]
fn damaged_files_do_not_panic() {
    for name in [
        "i64.npy",
        "bf16_trace.safetensors",
        "load_history.json",
        "sglang_stat.pt",
    ] {
        let whole = std::fs::read(data(name)).unwrap();
        for i in (0..whole.len()).step_by(1 + whole.len() / 300) {
            for value in [b'9', 0xff, whole[i] ^ 1] {
                let mut damaged = whole.clone();
                damaged[i] = value;
                let _ = read_bytes(name, &damaged);
            }
        }
    }
}

#[test]
fn torch_views_may_not_claim_gigabytes() {
    let error = load_file::read(data("expanded.pt"))
        .unwrap_err()
        .to_string();
    assert_says(
        &error,
        &[
            "expanded.pt",
            "[1048576, 1024] is more than 268435456 numbers",
        ],
    );
}

#[test]
fn torch_files_are_read_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pt");
    let error = load_file::write(&path, &counting(&[1, 1]))
        .unwrap_err()
        .to_string();
    assert_says(&error, &["x.pt", "not written"]);
    assert!(!path.exists());
}

fn any_load() -> impl Strategy<Value = LoadFile> {
    let shape = (0usize..4, 1usize..4, 1usize..5);
    let number = prop_oneof![
        (0u32..1_000_000).prop_map(f64::from),
        0.0..1e12,
        Just(0.0),
        Just(9_007_199_254_740_992.0),
        Just(f64::MIN_POSITIVE),
    ];
    shape.prop_flat_map(move |(steps, layers, experts)| {
        let length = steps.max(1) * layers * experts;
        prop::collection::vec(number.clone(), length).prop_map(move |values| {
            let mut loads = values
                .chunks(layers * experts)
                .map(|step| ExpertLoad::new(layers, experts, step.to_vec()).unwrap());
            if steps == 0 {
                return loads.next().unwrap().into();
            }
            LoadTrace::new(loads.collect()).unwrap().into()
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(load in any_load()) {
        let folder = tempfile::tempdir().unwrap();
        for name in ["x.json", "x.csv", "x.npy", "x.safetensors"] {
            let path = folder.path().join(name);
            load_file::write(&path, &load).unwrap();
            prop_assert_eq!(&load_file::read(&path).unwrap(), &load, "{}", name);
        }
    }

    #[test]
    fn any_bytes_are_a_load_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for name in ["x.json", "x.csv", "x.npy", "x.safetensors", "x.pt"] {
            let _ = read_bytes(name, &bytes);
        }
    }
}
