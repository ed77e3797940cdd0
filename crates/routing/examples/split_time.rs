//! dev
use std::time::Instant;
use moekit_routing::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Binomial, Distribution, Gamma, StandardNormal};

fn step_counts(loads: &[f64], kappa: f64, tokens: u64, rng: &mut ChaCha8Rng) -> Vec<u64> {
    let total: f64 = loads.iter().sum();
    let mut p: Vec<f64> = loads.iter().map(|w| Gamma::new((kappa * w / total).max(1e-9), 1.0).unwrap().sample(rng)).collect();
    let sum: f64 = p.iter().sum();
    p.iter_mut().for_each(|x| *x /= sum);
    let (mut left, mut mass) = (tokens, 1.0f64);
    let mut counts: Vec<u64> = p.iter().map(|&x| {
        let n = Binomial::new(left, (x / mass).clamp(0.0, 1.0)).unwrap().sample(rng);
        left -= n; mass = (mass - x).max(1e-300); n }).collect();
    *counts.last_mut().unwrap() += left;
    counts
}

fn replicate(w: &[f64], spare: usize) -> Vec<usize> {
    let mut c = vec![1; w.len()];
    for _ in 0..spare {
        let mut b = 0;
        for e in 1..w.len() { if w[e] / c[e] as f64 > w[b] / c[b] as f64 { b = e; } }
        c[b] += 1;
    }
    c
}

fn lpt(w: &[f64], ranks: usize, slots: usize, connect: bool) -> Vec<Vec<usize>> {
    let c = replicate(w, slots - w.len());
    let mut items: Vec<(f64, usize)> = (0..w.len()).flat_map(|e| vec![(w[e] / c[e] as f64, e); c[e]]).collect();
    items.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    if connect { items.sort_by_key(|i| c[i.1] == 1); }
    let per = slots / ranks;
    let mut out: Vec<Vec<usize>> = vec![vec![]; ranks];
    let mut load = vec![0.0f64; ranks];
    let mut comp: Vec<usize> = (0..ranks).collect();
    let mean = w.iter().sum::<f64>() / ranks as f64;
    let mut prev: Vec<usize> = vec![];
    let mut prev_e = usize::MAX;
    for (x, e) in items {
        if e != prev_e { prev.clear(); prev_e = e; }
        let open: Vec<usize> = (0..ranks).filter(|&r| out[r].len() < per && (!connect || !out[r].contains(&e))).collect();
        let open = if open.is_empty() { (0..ranks).filter(|&r| out[r].len() < per).collect() } else { open };
        let least = open.iter().copied().min_by(|&a, &b| load[a].total_cmp(&load[b])).unwrap();
        let mut r = least;
        if connect && c[e] > 1 {
            let near = |t: usize| load[t] <= load[least] + 0.3 * mean && out[t].len() < 3;
            if let Some(&t) = open.iter().find(|&&t| near(t) && prev.iter().all(|&p| comp[p] != comp[t])) { r = t; }
        }
        for &p in &prev { let (a, b) = (comp[p], comp[r]); for q in &mut comp { if *q == b { *q = a; } } }
        prev.push(r);
        out[r].push(e); load[r] += x;
    }
    out
}

fn main() {
    let args: Vec<usize> = std::env::args().skip(1).map(|a| a.parse().unwrap()).collect();
    let (e, s, g) = if args.len() >= 3 { (args[0], args[1], args[2]) } else { (256, 288, 32) };
    for tokens in [32768u64, 4096] { for connect in [false, true] {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let mut cases = vec![];
        for _ in 0..20 {
            let w: Vec<f64> = (0..e).map(|_| (0.985 * rng.sample::<f64, _>(StandardNormal)).exp()).collect();
            let mut win = vec![0.0; e];
            for _ in 0..32 { for (x, c) in win.iter_mut().zip(step_counts(&w, 13000.0, tokens, &mut rng)) { *x += c as f64; } }
            let ranks = lpt(&win, g, s, connect);
            let table = RoutingTable::new(Placement::from_ranks(e, &ranks).unwrap(), Topology::new(g).unwrap(), 0, 0).unwrap();
            let steps: Vec<Vec<u64>> = (0..50).map(|_| step_counts(&w, 13000.0, tokens, &mut rng)).collect();
            cases.push((table, steps));
        }
        let mut opts: Vec<Vec<u64>> = vec![];
        let mut bal = 0.0;
        for (t, st) in &cases { let mut x = ReplicaShares::new(t); opts.push(st.iter().map(|c| { x.split(c).unwrap(); assert_eq!(x.bound(), x.largest()); bal += tokens as f64 / g as f64 / x.bound() as f64; x.bound() }).collect()); }
        println!("tokens {tokens} connect {connect} balance {:.4} size {:?}", bal / 1000.0, ReplicaShares::new(&cases[0].0).size());
        for start in [0, 1] { for tol in [0, 10000, 1000, 200] { for (sweeps, exact) in [(0, true), (1, true)] { if start == 0 && sweeps == 0 && exact { continue; }
            let mut times = vec![]; let mut searches = vec![]; let mut ratios = vec![];
            for ((t, st), o) in cases.iter().zip(&opts) {
                let mut x = ReplicaShares::new(t); x.sweeps = sweeps; x.exact = exact; x.start = start; x.set_tol(tol); let mut y = x.clone();
                for (c, &o) in st.iter().zip(o) {
                    let mut best = f64::MAX;
                    for _ in 0..5 { x = y.clone(); let t0 = Instant::now(); x.split(c).unwrap(); best = best.min(t0.elapsed().as_secs_f64() * 1e6); }
                    times.push(best); y = x.clone(); searches.push(x.searches() as f64);
                    ratios.push(o as f64 / x.largest() as f64);
                }
            }
            for v in [&mut times, &mut searches, &mut ratios] { v.sort_by(f64::total_cmp); }
            let n = times.len();
            println!("  start {start} tol {tol} sweeps {sweeps:3} exact {exact:5}: us p50 {:.2} p99 {:.2}  searches p50 {} p99 {}  ratio mean {:.4} p1 {:.4}", times[n/2], times[n*99/100], searches[n/2], searches[n*99/100], ratios.iter().sum::<f64>() / n as f64, ratios[n/100]);
        } } }
    } }
}
