//! Temperature: logits divided by one number.

/// Below this a temperature means greedy decoding, as in vLLM: the distribution is a single token in f32 anyway.
pub(crate) const GREEDY_BELOW: f32 = 1e-5;

/// A temperature that is not greedy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Temperature(pub(crate) f64);

impl Temperature {
    /// The scaled logit. Division in f64 keeps distinct f32 logits distinct and in order.
    #[inline(always)]
    pub(crate) fn scale(self, logit: f32) -> f64 {
        f64::from(logit) / self.0
    }

    /// A logit so low that every logit below it scales to less than `scale(max) - distance`.
    ///
    /// `distance` should exceed the true need by 0.05 or so, which covers the rounding here.
    pub(crate) fn cutoff(self, max: f32, distance: f64) -> f32 {
        ((f64::from(max) - distance * self.0) as f32).next_down()
    }
}
