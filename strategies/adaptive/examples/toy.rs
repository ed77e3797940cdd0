use moekit_strategy_adaptive::*;
fn main() { let l = [600., 560., 120., 120., 20., 10., 10., 10.]; let p = Planner::new(Settings::default()).plan(&LayerProblem::new(&l, &[2; 8])).unwrap(); println!("{p:?}"); }
