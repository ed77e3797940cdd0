#[path = "support/loads.rs"]
#[allow(dead_code)]
mod loads;
use loads::*;
use moekit_strategy_adaptive::*;
fn ar(l: &[f64], d: f64, mode: usize, r: &mut rand_chacha::ChaCha8Rng) -> Vec<f64> {
    match mode { 0 => drift(l, d, r), 1 => drift(l, 1.0 - (1.0 - d) * (1.0 - d), r),
      _ => { // zipf: swap popularity: share d of experts exchange loads
        use rand::RngExt; let mut w = l.to_vec(); let n = (d * l.len() as f64 / 1.0).round() as usize; for _ in 0..n/2 { let a = r.random_range(0..l.len()); let b = r.random_range(0..l.len()); w.swap(a, b); } w } }
}
fn main() {
    let slots = vec![9usize; 32];
    for (name, p) in [("LN .5", Profile::LogNormal(0.5)), ("LN .8", Profile::LogNormal(0.8)), ("LN 1.2", Profile::LogNormal(1.2)), ("LN 1.5", Profile::LogNormal(1.5)), ("Zipf .8", Profile::Zipf(0.8)), ("Zipf 1.0", Profile::Zipf(1.0)), ("Zipf 1.2", Profile::Zipf(1.2)), ("PL 1.01", Profile::PowerLaw(1.01, 4096.))] {
        for mode in 0..3 { let mut line = String::new(); for d in [0.02, 0.05] {
            let mut r = rng(5); let (mut mv, mut bal, mut n, mut before, mut minb, mut maxmv) = (0.0, 0.0, 0.0, 0.0, 9.0f64, 0usize);
            let t = std::time::Instant::now(); let mut us = 0.0;
            for _ in 0..12 {
                let mut l = p.draw(256, &mut r); let mut pl = Planner::new(Settings::default());
                let mut x = pl.plan(&LayerProblem::new(&l, &slots)).unwrap();
                for _ in 0..6 {
                    l = ar(&l, d, mode, &mut r);
                    let cur: Vec<Vec<u32>> = x.experts.chunks(9).map(|c| c.to_vec()).collect();
                    let mut cnt = vec![0.0; 256]; for &e in &x.experts { cnt[e as usize] += 1.0; }
                    let t = l.iter().sum::<f64>() / 32.0;
                    before += t / cur.iter().map(|c| c.iter().map(|&e| l[e as usize] / cnt[e as usize]).sum::<f64>()).fold(0.0, f64::max);
                    let t = std::time::Instant::now();
                    x = pl.plan(&LayerProblem::new(&l, &slots).with_current(&cur)).unwrap();
                    us += t.elapsed().as_secs_f64() * 1e6;
                    mv += x.received as f64 / 288.0; maxmv = maxmv.max(x.received); bal += x.bound / x.largest; minb = minb.min(x.bound / x.largest); n += 1.0;
                }
            }
            let _ = t;
            line += &format!("  | d {d}: before {:.3} moved {:.1}% max {:.1}% bal {:.4} min {:.4} {:.0}us", before / n, 100.0 * mv / n, maxmv as f64 / 2.88, bal / n, minb, us / n);
        } println!("{name} m{mode} {line}"); }
    }
}
