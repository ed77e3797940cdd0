use moekit_quant::QuantBackend;

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Idle {}

#[typetag::serde(name = "idle")]
impl QuantBackend for Idle {}

fn main() {}
