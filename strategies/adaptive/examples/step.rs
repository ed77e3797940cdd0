#[path = "support/loads.rs"]
#[allow(dead_code)]
mod loads;
use loads::*;
use moekit_strategy_adaptive::{certificate_draft::optimum, *};
fn main() {
    let (s, g) = (288usize, 32usize);
    for tokens in [32768u64, 4096] {
    for (name, mode) in [("adaptive", 1)] {
        let mut r = rng(11); let (mut eq, mut opt, mut n) = (0.0, 0.0, 0); let mut plan_b = 0.0; let mut worst = 1.0f64; let mut iso=0.0;
        for _ in 0..12 {
            let l = Profile::LogNormal(R1_MT_SIGMA).draw(256, &mut r);
            let mut win = vec![0.0; 256];
            for _ in 0..32 { for (w, c) in win.iter_mut().zip(step_counts(&l, R1_MT_KAPPA, tokens, &mut r)) { *w += c as f64; } }
            let _ = mode; let slots = vec![s/g; g]; let x = Planner::new(Settings::default()).plan(&LayerProblem::new(&win, &slots)).unwrap(); plan_b += x.bound / x.largest;
            let plan: Vec<&[u32]> = x.experts.chunks(s/g).collect();
            let mut reps = vec![vec![]; 256]; for (q, p) in plan.iter().enumerate() { for &e in *p { reps[e as usize].push(q); } }
            for _ in 0..40 {
                let c = step_counts(&l, R1_MT_KAPPA, tokens, &mut r);
                let mean = tokens as f64 / g as f64;
                let mut load = vec![0.0; g];
                for e in 0..256 { for &q in &reps[e] { load[q] += c[e] as f64 / reps[e].len() as f64; } }
                eq += mean / load.iter().cloned().fold(0.0, f64::max);
                let o = optimum(&reps, &c.iter().map(|&x| x as u64).collect::<Vec<_>>(), g).unwrap();
                opt += mean / o.level(); worst = worst.min(mean / o.level()); n += 1; iso += o.ranks.len() as f64;
            }
        }
        println!("{tokens} {name}: plan {:.4} equal {:.4} optimum {:.4} worst {:.4} avg|A| {:.1}", plan_b / 12.0, eq / n as f64, opt / n as f64, worst, iso / n as f64);
    } }
}
