#[path = "support/loads.rs"]
#[allow(dead_code)]
mod loads;
use loads::*;
use moekit_strategy_adaptive::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (kind, p, tok, s, g): (&str, f64, f64, usize, usize) = (&a[1], a[2].parse().unwrap(), a[3].parse().unwrap(), a[4].parse().unwrap(), a[5].parse().unwrap());
    let prof = match kind { "pl" => Profile::PowerLaw(p, tok), "ln" => Profile::LogNormal(p), _ => Profile::Zipf(p) };
    let mut r = rng(7); let mut ws = Planner::new(Settings::default()); let slots = vec![s/g; g];
    let mut shown = 0;
    for i in 0..58 { let l = prof.draw(256, &mut r); let x = ws.plan(&LayerProblem::new(&l, &slots)).unwrap();
        let bal = x.bound / x.largest;
        if bal < a[6].parse::<f64>().unwrap() && shown < 3 { shown += 1;
            let mut c = vec![0; 256]; for &e in &x.experts { c[e as usize] += 1; }
            println!("layer {i} {bal:.4}");
            let mut rl: Vec<(f64, Vec<String>)> = x.experts.chunks(s/g).map(|q| (q.iter().map(|&e| l[e as usize]/c[e as usize] as f64).sum::<f64>()/x.bound, q.iter().map(|&e| format!("{:.3}x{}", l[e as usize]/x.bound/c[e as usize] as f64, c[e as usize])).collect())).collect(); rl.sort_by(|a,b| b.0.total_cmp(&a.0));
            for (i, (v, q)) in rl.iter().enumerate() { if i < 8 || i + 8 > rl.len() || i % 16 == 0 { println!("  {v:.4} {q:?}"); } }
        } }
}
