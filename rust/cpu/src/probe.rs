//! What this machine can do at most: read bandwidth and arithmetic peaks, the roofs of every benchmark.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::error::CpuError;
use crate::isa::Isa;
use crate::pool::{Pool, Worker};
use crate::tensor::AlignedBytes;

/// Arithmetic whose peak can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeakKind {
    /// f32 fused multiply-adds.
    Fp32,
    /// VPDPBF16PS.
    Bf16,
    /// Codes of 4 bits by i8: VPDPBUSD, or VPMADDUBSW and an addition in 16 bits.
    Int4,
    /// u8 by i8 into i32: VPDPBUSD, or VPMADDUBSW, VPMADDWD and an addition.
    Int8,
    /// i16 by i16 into i32: VPDPWSSD, or VPMADDWD and an addition.
    Int16,
}

impl PeakKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Fp32, Self::Bf16, Self::Int4, Self::Int8, Self::Int16];

    /// "fp32", "bf16", "int4", "int8" or "int16".
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
            Self::Int4 => "int4",
            Self::Int8 => "int8",
            Self::Int16 => "int16",
        }
    }

    /// The kind of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Products of integers of so many bits at a level; 4-bit codes have a shorter way only below VPDPBUSD.
    pub fn integers(isa: Isa, bits: usize) -> Self {
        if bits == 4 && isa < Isa::Avx512Vnni { Self::Int4 } else { Self::Int8 }
    }
}

/// Bytes of one step of the reading loop.
const READ_STEP: usize = 512;
/// Multiply-adds of each chain in one run of [`peak_flops`].
const LINKS: u64 = 20_000_000;

/// Memory that is read to see how fast that goes.
pub struct ReadProbe {
    buffer: AlignedBytes,
}

impl ReadProbe {
    /// A probe of `num_bytes` bytes, in huge pages where the system gives them.
    ///
    /// # Errors
    /// [`CpuError::OutOfMemory`].
    pub fn new(num_bytes: usize) -> Result<Self, CpuError> {
        let mut buffer = AlignedBytes::zeroed(num_bytes.max(READ_STEP))?;
        // Written once, so that every page is memory of its own and not the shared page of zeros.
        buffer.as_mut_slice().fill(1);
        Ok(Self { buffer })
    }

    /// Bytes per second of `repeats` sequential reads: each worker streams one contiguous part, 512 bytes per step.
    ///
    /// # Errors
    /// [`CpuError::Panicked`].
    pub fn measure(&self, pool: &mut Pool, repeats: usize) -> Result<Vec<f64>, CpuError> {
        let part = self.buffer.len() / pool.count() / READ_STEP * READ_STEP;
        let work = |worker: &Worker<'_>| {
            let own = &self.buffer.as_slice()[worker.index() * part..][..part];
            std::hint::black_box(read(own));
        };
        let all = (part * pool.count()) as f64;
        Ok(measure(pool, repeats, &work)?.into_iter().map(|seconds| all / seconds).collect())
    }
}

/// GB/s (10^9) of `repeats` reads of `num_bytes` bytes shared by `num_threads` threads, as [`ReadProbe`] does them.
///
/// # Errors
/// [`CpuError::OutOfMemory`], [`CpuError::Threads`].
pub fn read_bandwidth(num_bytes: usize, num_threads: usize, repeats: usize) -> Result<Vec<f64>, CpuError> {
    let mut pool = Pool::new(num_threads)?;
    let probe = ReadProbe::new(num_bytes.max(pool.count() * READ_STEP))?;
    let speeds = probe.measure(&mut pool, repeats)?;
    Ok(speeds.into_iter().map(|speed| speed * 1e-9).collect())
}

/// Operations per second (a multiply-add is two) of `repeats` runs of register-resident multiply-adds on `num_threads`
/// threads, by the instructions that `isa` has for that kind.
///
/// # Errors
/// [`CpuError::Config`] where the processor lacks the level, or the level such an instruction; [`CpuError::Threads`].
pub fn peak_flops(
    kind: PeakKind,
    isa: Isa,
    num_threads: usize,
    repeats: usize,
) -> Result<Vec<f64>, CpuError> {
    peak_on(&mut Pool::new(num_threads)?, kind, isa, LINKS, repeats)
}

/// [`peak_flops`] on a pool, each run of `links` multiply-adds of every chain; 20 million of them take some 40 ms.
///
/// # Errors
/// As [`peak_flops`].
pub fn peak_on(
    pool: &mut Pool,
    kind: PeakKind,
    isa: Isa,
    links: u64,
    repeats: usize,
) -> Result<Vec<f64>, CpuError> {
    if !isa.is_supported() {
        return Err(CpuError::Config { field: "isa", what: format!("this processor has no {isa}") });
    }
    if kind == PeakKind::Bf16 && isa < Isa::Avx512Bf16 {
        return Err(CpuError::Config { field: "kind", what: format!("{isa} has no VPDPBF16PS") });
    }
    let done = AtomicU64::new(0);
    let work = |_: &Worker<'_>| {
        done.store(multiply_add(kind, isa, links), Ordering::SeqCst);
    };
    let seconds = measure(pool, repeats, &work)?;
    let all = done.load(Ordering::SeqCst) as f64 * pool.count() as f64;
    Ok(seconds.into_iter().map(|seconds| all / seconds).collect())
}

/// Seconds from the first worker's start to the last one's end, once per repeat.
fn measure(
    pool: &mut Pool,
    repeats: usize,
    work: &(dyn Fn(&Worker<'_>) + Sync),
) -> Result<Vec<f64>, CpuError> {
    let mut seconds = Vec::with_capacity(repeats.min(1024));
    for _ in 0..repeats {
        let spans: Mutex<Vec<(Instant, Instant)>> = Mutex::new(Vec::new());
        pool.run(|worker| {
            worker.barrier();
            let start = Instant::now();
            work(worker);
            let end = Instant::now();
            spans.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((start, end));
        })?;
        let spans = spans.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let start = spans.iter().map(|span| span.0).min();
        let end = spans.iter().map(|span| span.1).max();
        if let (Some(start), Some(end)) = (start, end) {
            seconds.push((end - start).as_secs_f64().max(1e-9));
        }
    }
    Ok(seconds)
}

/// Read every byte; the result depends on all of them.
fn read(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        if Isa::Avx512.is_supported() {
            // SAFETY: the level is supported.
            return unsafe { x86::read_avx512(bytes) };
        }
        if Isa::Avx2.is_supported() {
            // SAFETY: the level is supported.
            return unsafe { x86::read_avx2(bytes) };
        }
    }
    let words = bytes.chunks_exact(8);
    words.fold(0, |all, word| all ^ u64::from_le_bytes(word.try_into().unwrap_or([0; 8])))
}

/// Run the chains; returns how many operations that were.
fn multiply_add(kind: PeakKind, isa: Isa, links: u64) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if isa != Isa::Scalar {
        // SAFETY: `peak_flops` made sure of the level and of what it has.
        return unsafe { x86::multiply_add(kind, isa, links) };
    }
    let _ = isa;
    // A compiled loop with calls is that much slower than the chains.
    let links = (links / 16).max(1);
    if kind == PeakKind::Fp32 {
        let mut sums = [1.0f32; 8];
        for _ in 0..links {
            for sum in &mut sums {
                *sum = std::hint::black_box(*sum).mul_add(0.5, 0.25);
            }
        }
        std::hint::black_box(sums);
        return 2 * 8 * links;
    }
    let (mut sums, mut x) = ([0i32; 16], [3i16; 16]);
    for _ in 0..links {
        x = std::hint::black_box(x);
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = sum.wrapping_add(i32::from(x) * i32::from(x));
        }
    }
    std::hint::black_box(sums);
    2 * 16 * links
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::{PeakKind, READ_STEP};
    use crate::isa::Isa;

    #[target_feature(enable = "avx512f")]
    pub(super) fn read_avx512(bytes: &[u8]) -> u64 {
        let mut sums = [_mm512_setzero_si512(); 8];
        for step in bytes.chunks_exact(READ_STEP) {
            let from = step.as_ptr().cast::<__m512i>();
            for (index, sum) in sums.iter_mut().enumerate() {
                // SAFETY: a step has eight vectors.
                *sum = _mm512_xor_si512(*sum, unsafe { _mm512_loadu_si512(from.add(index)) });
            }
        }
        let all = sums.into_iter().fold(_mm512_setzero_si512(), |all, sum| _mm512_xor_si512(all, sum));
        _mm512_reduce_add_epi64(all) as u64
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn read_avx2(bytes: &[u8]) -> u64 {
        let mut sums = [_mm256_setzero_si256(); 8];
        for step in bytes.chunks_exact(READ_STEP) {
            let from = step.as_ptr().cast::<__m256i>();
            for (index, sum) in sums.iter_mut().enumerate() {
                // SAFETY: a step has sixteen vectors.
                let (a, b) =
                    unsafe { (_mm256_loadu_si256(from.add(index)), _mm256_loadu_si256(from.add(index + 8))) };
                *sum = _mm256_xor_si256(*sum, _mm256_xor_si256(a, b));
            }
        }
        let all = sums.into_iter().fold(_mm256_setzero_si256(), |all, sum| _mm256_xor_si256(all, sum));
        let mut words = [0u64; 4];
        // SAFETY: the array is one vector long.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), all) };
        words.into_iter().fold(0, u64::wrapping_add)
    }

    /// Chains side by side of one instruction that multiplies and adds, written in assembly so that no compiler
    /// shortens them.
    macro_rules! chains {
        ($name:ident, $features:literal, $class:ident, $splat:ident, $instruction:literal, $($sum:ident)*) => {
            #[target_feature(enable = $features)]
            fn $name(links: u64) {
                let x = $splat(f32::from_bits(0x3f00_3f00));
                $(let mut $sum = x;)*
                // SAFETY: only registers are touched, all of them named; the features are this function's.
                unsafe {
                    asm!(
                        "2:",
                        $(concat!($instruction, " {", stringify!($sum), "}, {x}, {x}"),)*
                        "dec {links}",
                        "jnz 2b",
                        links = inout(reg) links => _,
                        x = in($class) x,
                        $($sum = inout($class) $sum,)*
                        options(nomem, nostack),
                    );
                }
                $(black_box($sum);)*
            }
        };
    }

    /// The same for a multiplication, a widening of the products ("#", a comment, for none) and an addition.
    macro_rules! triples {
        (
            $name:ident, $features:literal, $class:ident, $splat:ident, $multiply:literal, $widen:literal, $add:literal,
            $($sum:ident $product:ident)*
        ) => {
            #[target_feature(enable = $features)]
            fn $name(links: u64) {
                let x = $splat(f32::from_bits(0x0101_0101));
                $(let (mut $sum, mut $product) = (x, x);)*
                // SAFETY: as above.
                unsafe {
                    asm!(
                        "2:",
                        $(concat!($multiply, " {", stringify!($product), "}, {x}, {x}"),)*
                        $(concat!($widen, " {", stringify!($product), "}, {", stringify!($product), "}, {x}"),)*
                        $(concat!($add, " {", stringify!($sum), "}, {", stringify!($sum), "}, {", stringify!($product), "}"),)*
                        "dec {links}",
                        "jnz 2b",
                        links = inout(reg) links => _,
                        x = in($class) x,
                        $($sum = inout($class) $sum, $product = inout($class) $product,)*
                        options(nomem, nostack),
                    );
                }
                $(black_box(($sum, $product));)*
            }
        };
    }

    chains!(fp32_avx2, "avx2,fma", ymm_reg, _mm256_set1_ps, "vfmadd231ps", a b c d e f g h i j k l);
    chains!(fp32_avx512, "avx512f", zmm_reg, _mm512_set1_ps, "vfmadd231ps", a b c d e f g h i j k l m n o p);
    chains!(bf16, "avx512f,avx512bf16", zmm_reg, _mm512_set1_ps, "vdpbf16ps", a b c d e f g h i j k l m n o p);
    chains!(vnni, "avx512f,avx512vnni", zmm_reg, _mm512_set1_ps, "vpdpbusd", a b c d e f g h i j k l m n o p);
    chains!(vnni16, "avx512f,avx512vnni", zmm_reg, _mm512_set1_ps, "vpdpwssd", a b c d e f g h i j k l m n o p);
    triples!(
        int4_avx2, "avx2", ymm_reg, _mm256_set1_ps, "vpmaddubsw", "#", "vpaddw",
        a b c d e f g h i j k l
    );
    triples!(
        int8_avx2, "avx2", ymm_reg, _mm256_set1_ps, "vpmaddubsw", "vpmaddwd", "vpaddd",
        a b c d e f g h i j k l
    );
    triples!(
        int16_avx2, "avx2", ymm_reg, _mm256_set1_ps, "vpmaddwd", "#", "vpaddd",
        a b c d e f g h i j k l
    );
    triples!(
        int16_avx512, "avx512f,avx512bw", zmm_reg, _mm512_set1_ps, "vpmaddwd", "#", "vpaddd",
        a b c d e f g h i j k l m n o p q r s t u v w y
    );
    triples!(
        int4_avx512, "avx512f,avx512bw", zmm_reg, _mm512_set1_ps, "vpmaddubsw", "#", "vpaddw",
        a b c d e f g h i j k l m n o p q r s t u v w y
    );
    triples!(
        int8_avx512, "avx512f,avx512bw", zmm_reg, _mm512_set1_ps, "vpmaddubsw", "vpmaddwd", "vpaddd",
        a b c d e f g h i j k l m n o p q r s t u v w y
    );

    /// Run the chains of a level above `Scalar`; returns how many operations that were.
    ///
    /// # Safety
    /// The processor supports `isa`, which has the instructions of `kind`.
    pub(super) unsafe fn multiply_add(kind: PeakKind, isa: Isa, links: u64) -> u64 {
        let links = links.max(1);
        // SAFETY: the caller's duty, passed on.
        unsafe {
            match (kind, isa) {
                (PeakKind::Fp32, Isa::Avx2) => fp32_avx2(links),
                (PeakKind::Fp32, _) => fp32_avx512(links),
                (PeakKind::Bf16, _) => bf16(links),
                (PeakKind::Int4, Isa::Avx2) => int4_avx2(links),
                (PeakKind::Int8, Isa::Avx2) => int8_avx2(links),
                (PeakKind::Int16, Isa::Avx2) => int16_avx2(links),
                (PeakKind::Int16, Isa::Avx512Vnni | Isa::Avx512Bf16) => vnni16(links),
                (PeakKind::Int16, _) => int16_avx512(links),
                (_, Isa::Avx512Vnni | Isa::Avx512Bf16) => vnni(links),
                (PeakKind::Int4, _) => int4_avx512(links),
                (PeakKind::Int8, _) => int8_avx512(links),
            }
        }
        let (chains, bytes) = match (kind, isa) {
            (PeakKind::Fp32, Isa::Avx2) => (12, 32),
            (PeakKind::Int4 | PeakKind::Int8 | PeakKind::Int16, Isa::Avx2) => (6, 32),
            (PeakKind::Int4 | PeakKind::Int8 | PeakKind::Int16, Isa::Avx512) => (12, 64),
            _ => (16, 64),
        };
        let products = match kind {
            PeakKind::Fp32 => bytes / 4,
            PeakKind::Bf16 | PeakKind::Int16 => bytes / 2,
            PeakKind::Int4 | PeakKind::Int8 => bytes,
        };
        chains * 2 * products * links
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_is_a_positive_number_per_repeat() {
        let got = read_bandwidth(8 << 20, 2, 3).unwrap();
        assert_eq!(got.len(), 3);
        assert!(got.iter().all(|speed| speed.is_finite() && *speed > 0.01), "{got:?}");
    }

    #[test]
    fn every_byte_is_read() {
        let mut bytes = vec![0u8; 4 * READ_STEP];
        let zero = read(&bytes);
        for index in 0..bytes.len() {
            bytes[index] = 1;
            assert_ne!(read(&bytes), zero, "byte {index}");
            bytes[index] = 0;
        }
    }

    #[test]
    fn peaks_are_measured_where_the_level_has_the_instruction() {
        for isa in Isa::ALL {
            for kind in PeakKind::ALL {
                let exists = isa.is_supported() && (kind != PeakKind::Bf16 || isa == Isa::Avx512Bf16);
                match peak_flops(kind, isa, 1, 1) {
                    Ok(got) => assert!(exists && got.len() == 1 && got[0] > 1e6, "{kind:?} {isa}: {got:?}"),
                    Err(error) => assert!(!exists && matches!(error, CpuError::Config { .. })),
                }
            }
        }
    }

    #[test]
    fn kinds_have_names() {
        for kind in PeakKind::ALL {
            assert_eq!(PeakKind::from_name(kind.name()), Some(kind));
        }
        assert_eq!(PeakKind::from_name("int2"), None);
        assert_eq!(PeakKind::integers(Isa::Avx2, 4), PeakKind::Int4);
        assert_eq!(PeakKind::integers(Isa::Avx512Vnni, 4), PeakKind::Int8);
    }
}
