#[path = "support/loads.rs"]
#[allow(dead_code)]
mod loads;
use loads::*;
use moekit_strategy_adaptive::*;
use std::time::Instant;
fn main() {
    let cases: Vec<(&str, Profile)> = vec![
        ("LN .1", Profile::LogNormal(0.1)), ("LN .3", Profile::LogNormal(0.3)), ("LN .5", Profile::LogNormal(0.5)), ("LN .8", Profile::LogNormal(0.8)),
        ("LN 1.0", Profile::LogNormal(1.0)), ("LN 1.2", Profile::LogNormal(1.2)), ("LN 1.5", Profile::LogNormal(1.5)),
        ("Zipf .4", Profile::Zipf(0.4)), ("Zipf .8", Profile::Zipf(0.8)), ("Zipf 1", Profile::Zipf(1.0)), ("Zipf 1.2", Profile::Zipf(1.2)),
        ("PL 1.01 4k", Profile::PowerLaw(1.01, 4096.)), ("PL 1.2 1k", Profile::PowerLaw(1.2, 1024.)), ("PL 1.2 4k", Profile::PowerLaw(1.2, 4096.)), ("PL 1.2 32k", Profile::PowerLaw(1.2, 32768.)), ("PL 1.2 1M", Profile::PowerLaw(1.2, 1e6)),
    ];
    let only = std::env::args().nth(1);
    for (e, s, g) in [(256usize, 288usize, 32usize), (256, 320, 64), (256, 384, 128)] {
        println!("E{e} S{s} G{g}");
        for (name, p) in &cases {
            if only.as_ref().is_some_and(|o| !format!("{g} {name}").contains(o.as_str())) { continue; }
            let mut r = rng(7);
            let layers: Vec<Vec<f64>> = (0..58).map(|_| p.draw(e, &mut r)).collect();
            let slots = vec![s / g; g];
            let mut ws = Planner::new({ let mut s = Settings::default(); if let Ok(w) = std::env::var("WL") { s.work_limit = w.parse().unwrap(); } s });
            let (mut min, mut sum, mut bad, mut w) = (9.0f64, 0.0, 0, 0);
            let mut times = vec![];
            let reps = if only.is_some() { std::env::var("REPS").map(|r| r.parse().unwrap()).unwrap_or(400) } else { 5 };
            for i in 0..reps {
                let t = Instant::now();
                for l in &layers {
                    let x = ws.plan(&LayerProblem::new(l, &slots)).unwrap();
                    if i == 0 { let b = x.bound / x.largest; min = min.min(b); sum += b; w += x.work; if b < 0.999 { bad += 1; } }
                }
                times.push(t.elapsed().as_secs_f64() * 1e6);
            }
            times.sort_by(f64::total_cmp);
            println!("{name:10} min {min:.4} mean {:.4} bad {bad:2} work {:6} us/layer {:6.1}  total ms {:.2}", sum / 58.0, w / 58, times[0] / 58.0, times[0]/1e3);
        }
    }
}
