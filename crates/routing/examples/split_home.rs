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
    let (e, s, g, nodes) = (args[0], args[1], args[2], args[3]);
    let mut dump = String::new();
    for tokens in [32768u64] { for connect in [false, true] {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let mut cases = vec![];
        for _ in 0..10 {
            let w: Vec<f64> = (0..e).map(|_| (0.985 * rng.sample::<f64, _>(StandardNormal)).exp()).collect();
            let mut win = vec![0.0; e];
            for _ in 0..32 { for (x, c) in win.iter_mut().zip(step_counts(&w, 13000.0, tokens, &mut rng)) { *x += c as f64; } }
            let ranks = lpt(&win, g, s, connect);
            let table = RoutingTable::new(Placement::from_ranks(e, &ranks).unwrap(), Topology::new(g).unwrap().with_nodes(nodes).unwrap(), 0, 0).unwrap();
            let steps: Vec<Vec<u64>> = (0..10).map(|_| {
                let c = step_counts(&w, 13000.0, tokens, &mut rng);
                let mut m = vec![0; g * e];
                for x in 0..e { for _ in 0..c[x] { m[rng.random_range(0..g) * e + x] += 1; } }
                m }).collect();
            cases.push((table, steps));
        }
        for (name, sweeps, mode) in [("plain", 0, 99), ("start", 0, 0), ("start sweep", 1, 0), ("lock", 0, 1), ("lock sweep", 1, 1), ("start home", 0, 2), ("lock home", 0, 3), ("lock sweep home", 1, 3)] {
            let (mut off, mut offr, mut un, mut n) = (0.0, 0.0, 0.0, 0.0); let mut times = vec![];
            for (t, st) in &cases {
                let mut x = ReplicaShares::new(t); x.sweeps = sweeps;
                for m in st {
                    let mut tot = vec![0u64; e]; for r in m.chunks(e) { for (a, b) in tot.iter_mut().zip(r) { *a += b; } }
                    let mut best = f64::MAX;
                    for _ in 0..5 { let t0 = Instant::now();
                    if mode == 99 { x.sweeps = 1; x.split(&tot).unwrap(); } else { x.split_from(m, mode).unwrap(); }
                    best = best.min(t0.elapsed().as_secs_f64() * 1e6); }
                    times.push(best);
                    let sh = if mode == 99 { x.split(&tot).unwrap().to_vec() } else { x.split_from(m, mode).unwrap().to_vec() };
                    for x0 in 0..e {
                        let sum: u64 = t.replicas(LogicalExpert::new(x0)).unwrap().iter().map(|s| sh[s.index()]).sum();
                        assert_eq!(sum, tot[x0]);
                        let mut sv = vec![0u64; nodes]; let mut svr = vec![0u64; g];
                        let mut has = vec![false; nodes];
                        for &sl in t.replicas(LogicalExpert::new(x0)).unwrap() { let o = t.owner(sl).unwrap(); let nd = t.topology().node_of(o).unwrap(); sv[nd] += sh[sl.index()]; svr[o.index()] += sh[sl.index()]; has[nd] = true; }
                        let mut src = vec![0u64; nodes];
                        for r in 0..g { src[t.topology().node_of(Rank::new(r)).unwrap()] += m[r * e + x0]; offr += m[r * e + x0].saturating_sub(svr[r]) as f64; }
                        for nd in 0..nodes { off += src[nd].saturating_sub(sv[nd]) as f64; if !has[nd] { un += src[nd] as f64; } }
                    }
                    n += tokens as f64;
                }
            }
            times.sort_by(f64::total_cmp);
            println!("connect {connect} {name:16} off node {:.4} off rank {:.4} unavoidable {:.4}  us p50 {:.2} p99 {:.2}", off / n, offr / n, un / n, times[times.len()/2], times[times.len()*99/100]);
        }
        for (t, st) in &cases { for m in &st[..3] {
            let mut tot = vec![0u64; e]; for r in m.chunks(e) { for (a, b) in tot.iter_mut().zip(r) { *a += b; } }
            let mut x = ReplicaShares::new(t); x.split(&tot).unwrap();
            dump += &format!("{connect}|{}|{:?}|{:?}|{:?}\n", x.bound(), t.placement().physical_to_logical().iter().map(|x| x.index()).collect::<Vec<_>>(), t.placement().rank_offsets(), (0..nodes).map(|nd| (0..e).map(|x0| t.topology().ranks_of(nd).unwrap().map(|r| m[r * e + x0]).sum::<u64>()).collect::<Vec<_>>()).collect::<Vec<_>>());
        } }
    } }
    std::fs::write("/tmp/wf-dump.txt", dump).unwrap();
}
