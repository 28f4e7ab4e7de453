//! Tensors of a checkpoint found, checked, cut into pieces of whole rows, and read by all workers of a pool.

use std::sync::{Mutex, PoisonError};

use crate::checkpoint::{Checkpoint, CheckpointReason, TensorInfo};
use crate::error::CpuError;
use crate::pool::Pool;
use crate::program::Parameter;
use crate::tensor::{AlignedBytes, DType};

/// Bytes that one worker reads at once, but for rows that are longer.
const PIECE_BYTES: usize = 2 << 20;
/// Pieces per worker between two calls of the progress callback.
const PIECES_PER_ROUND: usize = 8;
/// Pieces start at multiples of this many rows where they can: whole panels are packed fastest.
const ROW_STEP: usize = 32;

/// Rows of one tensor that are read at once.
pub(crate) struct Piece<'a> {
    /// The number that [`cut`] was given.
    pub(crate) matrix: usize,
    /// Row of the matrix, not of the tensor.
    pub(crate) first_row: usize,
    pub(crate) tensor: &'a str,
    pub(crate) dtype: DType,
    offset: u64,
    bytes: usize,
}

/// A checkpoint tensor of a parameter, found and checked.
pub(crate) struct Source<'a> {
    pub(crate) name: &'a str,
    pub(crate) info: &'a TensorInfo,
    pub(crate) dtype: DType,
}

/// The error for one tensor.
pub(crate) fn fault(checkpoint: &Checkpoint, tensor: &str, reason: CheckpointReason) -> CpuError {
    let file = checkpoint.get(tensor).map_or("", |info| checkpoint.file_name(info)).to_owned();
    CpuError::Checkpoint { file, tensor: Some(tensor.to_owned()), reason }
}

/// Find a parameter's tensors and check that together they have its shape.
pub(crate) fn find<'a>(
    parameter: &'a Parameter,
    checkpoint: &'a Checkpoint,
) -> Result<Vec<Source<'a>>, CpuError> {
    let mut rows_left = parameter.shape[0];
    let mut sources = Vec::with_capacity(parameter.sources.len());
    for (index, name) in parameter.sources.iter().enumerate() {
        let fault = |reason| fault(checkpoint, name, reason);
        let info = checkpoint.get(name).ok_or_else(|| fault(CheckpointReason::MissingTensor))?;
        let last = index + 1 == parameter.sources.len();
        let rows = info.shape.first().copied().unwrap_or(0);
        let same_rank = info.shape.len() == parameter.shape.len();
        let fits = same_rank && info.shape[1..] == parameter.shape[1..] && rows <= rows_left;
        if !fits || (last && rows != rows_left) {
            let mut expected = parameter.shape.clone();
            expected[0] = if last { rows_left } else { rows.min(rows_left) };
            return Err(fault(CheckpointReason::WrongShape { expected, got: info.shape.clone() }));
        }
        let wrong = || fault(CheckpointReason::WrongDType { got: info.dtype.name() });
        sources.push(Source { name, info, dtype: info.dtype.as_float().ok_or_else(wrong)? });
        rows_left -= rows;
    }
    Ok(sources)
}

/// Cut a matrix's tensors into pieces of whole rows.
pub(crate) fn cut<'a>(sources: &[Source<'a>], cols: usize, matrix: usize, pieces: &mut Vec<Piece<'a>>) {
    let mut first_row = 0;
    for source in sources {
        let row_bytes = cols * source.dtype.size();
        let rows = source.info.len as usize / row_bytes;
        let step = (PIECE_BYTES / row_bytes / ROW_STEP * ROW_STEP).max(ROW_STEP);
        let mut row = 0;
        while row < rows {
            let to_edge = ROW_STEP - (first_row + row) % ROW_STEP;
            let wanted = if to_edge < ROW_STEP { to_edge } else { step };
            let count = wanted.min(rows - row);
            pieces.push(Piece {
                matrix,
                first_row: first_row + row,
                tensor: source.name,
                dtype: source.dtype,
                offset: (row * row_bytes) as u64,
                bytes: count * row_bytes,
            });
            row += count;
        }
        first_row += rows;
    }
}

/// What is done with the bytes of a piece, on the worker of that number.
pub(crate) type Work<'a> = dyn Fn(usize, &Piece<'_>, &[u8]) -> Result<(), CpuError> + Sync + 'a;

/// Read all pieces and hand each to `work`; `after_round` is called often,
/// with the bytes since the last call. The first error ends it.
pub(crate) fn read(
    checkpoint: &Checkpoint,
    pieces: &[Piece<'_>],
    pool: &mut Pool,
    after_round: &mut dyn FnMut(u64) -> Result<(), CpuError>,
    work: &Work<'_>,
) -> Result<(), CpuError> {
    let largest = pieces.iter().map(|piece| piece.bytes).max().unwrap_or(0);
    let buffers = (0..pool.count()).map(|_| AlignedBytes::zeroed(largest).map(Mutex::new));
    let buffers: Vec<Mutex<AlignedBytes>> = buffers.collect::<Result<_, _>>()?;
    for round in pieces.chunks(PIECES_PER_ROUND * pool.count()) {
        let failed = Mutex::new(None);
        pool.run(|worker| {
            let mut buffer = buffers[worker.index()].lock().unwrap_or_else(PoisonError::into_inner);
            worker.share(round.len(), |item| {
                let piece = &round[item];
                let bytes = &mut buffer.as_mut_slice()[..piece.bytes];
                let read = checkpoint.read_into(piece.tensor, piece.offset, bytes);
                if let Err(error) = read.and_then(|()| work(worker.index(), piece, bytes)) {
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            });
        })?;
        if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        after_round(round.iter().map(|piece| piece.bytes as u64).sum())?;
    }
    Ok(())
}
