use crate::rows::Widen;

/// Independent sums, so that the loop has no chain of dependent additions.
const LANES: usize = 16;

/// The sum of products, in an order that depends on the length alone: lane `i` adds the products
/// at `i`, `i + 16`, ...; then the lanes are added in halves.
#[inline]
pub(crate) fn dot<A: Widen>(weights: &[f32], values: &[A]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (weights, weights_tail) = weights.as_chunks::<LANES>();
    let (values, values_tail) = values.as_chunks::<LANES>();
    for (w, x) in weights.iter().zip(values) {
        for ((lane, w), x) in lanes.iter_mut().zip(w).zip(x) {
            *lane += w * x.widen();
        }
    }
    for ((lane, w), x) in lanes.iter_mut().zip(weights_tail).zip(values_tail) {
        *lane += w * x.widen();
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn agrees_with_f64_at_every_length() {
        for len in 0..70 {
            let w: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
            let x: Vec<f32> = (0..len).map(|i| (i as f32 * 0.91).cos()).collect();
            let exact: f64 = w
                .iter()
                .zip(&x)
                .map(|(&w, &x)| f64::from(w) * f64::from(x))
                .sum();
            assert!(
                (f64::from(dot(&w, &x)) - exact).abs() < 1e-5,
                "length {len}"
            );
        }
    }

    #[test]
    fn bf16_is_widened_exactly() {
        let x: Vec<bf16> = (0..40)
            .map(|i| bf16::from_f32(i as f32 * 1.7 - 20.0))
            .collect();
        let wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
        let w: Vec<f32> = (0..40).map(|i| 1.0 / (i as f32 + 1.0)).collect();
        assert_eq!(dot(&w, &x).to_bits(), dot(&w, &wide).to_bits());
    }
}
