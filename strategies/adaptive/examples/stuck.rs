#[path = "support/loads.rs"]
#[allow(dead_code)]
mod loads;
use loads::*;
use moekit_strategy_adaptive::*;
fn main() {
    let slots = vec![9usize; 32]; let mut shown = 0;
    let mut r = rng(5);
    for _ in 0..12 { let mut l = Profile::Zipf(1.2).draw(256, &mut r); let mut pl = Planner::new(Settings::default());
        let mut x = pl.plan(&LayerProblem::new(&l, &slots)).unwrap();
        for step in 0..6 {
            l = drift(&l, 0.05, &mut r);
            let cur: Vec<Vec<u32>> = x.experts.chunks(9).map(|c| c.to_vec()).collect();
            let y = pl.plan(&LayerProblem::new(&l, &slots).with_current(&cur)).unwrap();
            if y.bound / y.largest < 0.97 && shown < 1 { shown += 1; println!("step {step} bal {:.4} work {} received {}", y.bound / y.largest, y.work, y.received);
                let mut c = vec![0; 256]; for &e in &y.experts { c[e as usize] += 1; }
                let mut o = vec![0; 256]; for &e in &x.experts { o[e as usize] += 1; }
                let mut rl: Vec<(f64, Vec<String>)> = y.experts.chunks(9).map(|q| (q.iter().map(|&e| l[e as usize]/c[e as usize] as f64).sum::<f64>()/y.bound, q.iter().map(|&e| format!("{e}:{:.3}x{}/{}", l[e as usize]/y.bound/c[e as usize] as f64, c[e as usize], o[e as usize])).collect())).collect(); rl.sort_by(|a,b| b.0.total_cmp(&a.0));
                for (v, q) in rl.iter() { println!("  {v:.4} {q:?}"); } }
            x = y;
        } }
}
