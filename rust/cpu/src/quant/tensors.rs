//! Checkpoint tensors to the canonical form, for backends that pack it themselves.

use std::sync::{Mutex, PoisonError};

use super::{QuantFormat, RowQuantizer};
use crate::checkpoint::{Checkpoint, CheckpointReason};
use crate::error::CpuError;
use crate::pool::Pool;
use crate::program::{Parameter, ParameterKind};
use crate::weights::pieces::{self, fault};

/// A matrix in the canonical form, with a scale for each group: where groups share one, their multiples of it, which f16
/// holds exactly.
pub struct CanonicalMatrix {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// `[rows, cols]`.
    pub codes: Vec<u8>,
    /// Bits of f16, `[rows, cols / group_size]`.
    pub scales: Vec<u16>,
    /// `[rows, cols / group_size]`; None when symmetric.
    pub zeros: Option<Vec<u8>>,
}

/// Where workers store the rows that they quantize, each its own.
struct Out {
    codes: *mut u8,
    scales: *mut u16,
    zeros: *mut u8,
}

// SAFETY: plain addresses; who writes where is `quantize_tensors`' concern.
unsafe impl Sync for Out {}

/// Read float tensors, stacked along dimension 0, and quantize them on all workers of `pool`. Memory held is the
/// result and one piece per worker.
///
/// # Errors
/// [`CpuError::Checkpoint`] for a tensor that is missing, no float matrix, of another number of columns than the first,
/// unreadable, or not finite; [`CpuError::Config`] for a format that does not exist or does not divide the columns.
pub fn quantize_tensors(
    checkpoint: &Checkpoint,
    names: &[String],
    format: QuantFormat,
    pool: &mut Pool,
) -> Result<CanonicalMatrix, CpuError> {
    let parameter = stacked(checkpoint, names)?;
    let (rows, cols) = (parameter.shape[0], parameter.shape[1]);
    format.check(cols).map_err(|(field, what)| CpuError::Config { field, what })?;
    let sources = pieces::find(&parameter, checkpoint)?;
    let mut cuts = Vec::new();
    pieces::cut(&sources, cols, 0, &mut cuts);
    let groups = cols / format.group_size;
    let (mut codes, mut scales, mut zeros) =
        (zeroed::<u8>(rows, cols)?, zeroed::<u16>(rows, groups)?, zeroed::<u8>(rows, groups)?);
    let out = Out { codes: codes.as_mut_ptr(), scales: scales.as_mut_ptr(), zeros: zeros.as_mut_ptr() };
    let own: Vec<_> = (0..pool.count()).map(|_| Mutex::new(RowQuantizer::new(format, cols))).collect();
    let out = &out;
    pieces::read(checkpoint, &cuts, pool, &mut |_| Ok(()), &|worker, piece, bytes| {
        let mut own = own[worker].lock().unwrap_or_else(PoisonError::into_inner);
        for (index, source) in bytes.chunks_exact(cols * piece.dtype.size()).enumerate() {
            let finite = own.quantize(source, piece.dtype);
            finite.map_err(|_| fault(checkpoint, piece.tensor, CheckpointReason::NotFinite))?;
            let group_scales = own.group_scales();
            let row = piece.first_row + index;
            // SAFETY: pieces are disjoint rows inside the vectors, each is taken by one worker, nobody else looks.
            unsafe {
                out.codes.add(row * cols).copy_from_nonoverlapping(own.codes.as_ptr(), cols);
                out.scales.add(row * groups).copy_from_nonoverlapping(group_scales.as_ptr(), groups);
                out.zeros.add(row * groups).copy_from_nonoverlapping(own.of_groups.as_ptr(), groups);
            }
        }
        Ok(())
    })?;
    Ok(CanonicalMatrix { rows, cols, codes, scales, zeros: (!format.symmetric).then_some(zeros) })
}

/// The tensors as one parameter, its shape taken from their headers.
fn stacked(checkpoint: &Checkpoint, names: &[String]) -> Result<Parameter, CpuError> {
    let (mut rows, mut cols) = (0usize, None);
    for name in names {
        let info =
            checkpoint.get(name).ok_or_else(|| fault(checkpoint, name, CheckpointReason::MissingTensor))?;
        let expected = [info.shape.first().copied().unwrap_or(1), cols.unwrap_or(1)];
        let (&[tensor_rows, tensor_cols], true) = (&info.shape[..], info.len > 0) else {
            let reason = CheckpointReason::WrongShape { expected: expected.into(), got: info.shape.clone() };
            return Err(fault(checkpoint, name, reason));
        };
        rows = rows.saturating_add(tensor_rows);
        cols.get_or_insert(tensor_cols);
    }
    let Some(cols) = cols else {
        return Err(CpuError::Config {
            field: "names",
            what: "got none, expected at least one tensor".into(),
        });
    };
    let name = names.join(", ");
    let (kind, shape, sources) = (ParameterKind::Matrix, vec![rows, cols], names.to_vec());
    Ok(Parameter { name, kind, shape, sources, quant: None })
}

fn zeroed<T: Clone + Default>(rows: usize, cols: usize) -> Result<Vec<T>, CpuError> {
    let len = rows.saturating_mul(cols);
    let mut all = Vec::new();
    let refuse = |_| CpuError::OutOfMemory { needed_bytes: len.saturating_mul(size_of::<T>()) };
    all.try_reserve_exact(len).map_err(refuse)?;
    all.resize(len, T::default());
    Ok(all)
}
