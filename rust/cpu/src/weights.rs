//! Loads a program's parameters: tensors are read in pieces and go straight into their final layout.
//!
//! Peak memory is the packed model and one piece per worker. Shapes and dtypes of all parameters are checked
//! before the first byte of data is read.

use std::sync::{Mutex, PoisonError};

use crate::checkpoint::{Checkpoint, CheckpointReason, TensorInfo};
use crate::error::CpuError;
use crate::ops::linear::PackedMatrix;
use crate::pool::Pool;
use crate::program::{Parameter, ParameterKind, Program};
use crate::tensor::{AlignedBytes, DType};

/// What a progress callback returns to stop a load, which then ends with [`CpuError::Interrupted`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted;

/// Called with (bytes done, bytes in all) from the thread that loads.
pub type Progress<'a> = dyn FnMut(u64, u64) -> Result<(), Interrupted> + 'a;

/// Bytes that one worker reads at once, but for rows that are longer.
const PIECE_BYTES: usize = 2 << 20;
/// Pieces per worker between two calls of the progress callback.
const PIECES_PER_ROUND: usize = 8;
/// Pieces start at multiples of this many rows where they can: whole panels are packed fastest.
const ROW_STEP: usize = 32;

/// The loaded parameters, in the order of the program.
pub struct Weights {
    items: Vec<Weight>,
}

enum Weight {
    Matrix(PackedMatrix),
    Vector(Vec<f32>),
}

/// Rows of one tensor that are read at once.
struct Piece<'a> {
    matrix: usize,
    first_row: usize,
    tensor: &'a str,
    dtype: DType,
    offset: u64,
    bytes: usize,
}

/// A checkpoint tensor of a parameter, found and checked.
struct Source<'a> {
    name: &'a str,
    info: &'a TensorInfo,
    dtype: DType,
}

impl Weights {
    /// Load every parameter of `program`. Matrices keep their dtype unless `weight_dtype` is given; a matrix whose
    /// sources differ in dtype becomes f32, which holds them all exactly. Vectors become f32.
    ///
    /// # Errors
    /// [`CpuError::Checkpoint`] for a tensor that is missing, of the wrong shape, of another dtype than F32, F16 and
    /// BF16, or that cannot be read; [`CpuError::OutOfMemory`]; [`CpuError::Interrupted`].
    pub fn load(
        program: &Program,
        checkpoint: &Checkpoint,
        weight_dtype: Option<DType>,
        pool: &mut Pool,
        progress: &mut Progress<'_>,
    ) -> Result<Self, CpuError> {
        let sources: Vec<Vec<Source<'_>>> = program
            .parameters
            .iter()
            .map(|parameter| find(parameter, checkpoint))
            .collect::<Result<_, _>>()?;
        let total = sources.iter().flatten().map(|source| source.info.len).sum();
        let mut items = Vec::with_capacity(sources.len());
        let mut pieces = Vec::new();
        let mut done = 0;
        progress(done, total).map_err(|Interrupted| CpuError::Interrupted)?;
        for (parameter, sources) in program.parameters.iter().zip(&sources) {
            if parameter.kind == ParameterKind::Vector {
                items.push(Weight::Vector(read_vector(checkpoint, sources)?));
                done += sources.iter().map(|source| source.info.len).sum::<u64>();
                continue;
            }
            let dtype = matrix_dtype(sources, weight_dtype);
            cut(sources, parameter.shape[1], items.len(), &mut pieces);
            items.push(Weight::Matrix(PackedMatrix::zeroed(parameter.shape[0], parameter.shape[1], dtype)?));
        }
        let mut weights = Self { items };
        weights.read_matrices(checkpoint, &pieces, pool, &mut |bytes| {
            done += bytes;
            progress(done, total).map_err(|Interrupted| CpuError::Interrupted)
        })?;
        Ok(weights)
    }

    /// Bytes that [`load`](Self::load) will hold.
    ///
    /// # Errors
    /// Those of `load` that need no data.
    pub fn needed_bytes(
        program: &Program,
        checkpoint: &Checkpoint,
        weight_dtype: Option<DType>,
    ) -> Result<usize, CpuError> {
        let mut needed = 0usize;
        for parameter in &program.parameters {
            let sources = find(parameter, checkpoint)?;
            let elements =
                parameter.shape.iter().fold(1, |product: usize, size| product.saturating_mul(*size));
            let size = match parameter.kind {
                ParameterKind::Vector => DType::F32.size(),
                ParameterKind::Matrix => matrix_dtype(&sources, weight_dtype).size(),
            };
            needed = needed.saturating_add(elements.saturating_mul(size));
        }
        Ok(needed)
    }

    /// The matrix with that index in the program's parameters.
    pub fn matrix(&self, index: usize) -> Option<&PackedMatrix> {
        match self.items.get(index) {
            Some(Weight::Matrix(matrix)) => Some(matrix),
            _ => None,
        }
    }

    /// The vector with that index in the program's parameters.
    pub fn vector(&self, index: usize) -> Option<&[f32]> {
        match self.items.get(index) {
            Some(Weight::Vector(vector)) => Some(vector),
            _ => None,
        }
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        let bytes = |item: &Weight| match item {
            Weight::Matrix(matrix) => matrix.bytes(),
            Weight::Vector(vector) => size_of_val(&vector[..]),
        };
        self.items.iter().map(bytes).sum()
    }

    /// Read and pack all pieces, a round at a time so that `after_round` is called often.
    fn read_matrices(
        &mut self,
        checkpoint: &Checkpoint,
        pieces: &[Piece<'_>],
        pool: &mut Pool,
        after_round: &mut dyn FnMut(u64) -> Result<(), CpuError>,
    ) -> Result<(), CpuError> {
        let largest = pieces.iter().map(|piece| piece.bytes).max().unwrap_or(0);
        let buffers = (0..pool.count()).map(|_| AlignedBytes::zeroed(largest).map(Mutex::new));
        let buffers: Vec<Mutex<AlignedBytes>> = buffers.collect::<Result<_, _>>()?;
        let this = &*self;
        for round in pieces.chunks(PIECES_PER_ROUND * pool.count()) {
            let failed = Mutex::new(None);
            pool.run(|worker| {
                let mut buffer = buffers[worker.index()].lock().unwrap_or_else(PoisonError::into_inner);
                worker.share(round.len(), |item| {
                    let outcome = this.read_piece(checkpoint, &round[item], buffer.as_mut_slice());
                    if let Err(error) = outcome {
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

    fn read_piece(
        &self,
        checkpoint: &Checkpoint,
        piece: &Piece<'_>,
        buffer: &mut [u8],
    ) -> Result<(), CpuError> {
        let Some(matrix) = self.matrix(piece.matrix) else { return Ok(()) };
        let bytes = &mut buffer[..piece.bytes];
        checkpoint.read_into(piece.tensor, piece.offset, bytes)?;
        // SAFETY: pieces are disjoint rows, each is taken by one worker, and nobody reads the matrix yet.
        unsafe { matrix.pack_rows(piece.first_row, bytes, piece.dtype) };
        Ok(())
    }
}

/// The type that a matrix is kept in.
fn matrix_dtype(sources: &[Source<'_>], wanted: Option<DType>) -> DType {
    let first = sources.first().map_or(DType::F32, |source| source.dtype);
    let same = sources.iter().all(|source| source.dtype == first);
    wanted.unwrap_or(if same { first } else { DType::F32 })
}

/// Find a parameter's tensors and check that together they have its shape.
fn find<'a>(parameter: &'a Parameter, checkpoint: &'a Checkpoint) -> Result<Vec<Source<'a>>, CpuError> {
    let mut rows_left = parameter.shape[0];
    let mut sources = Vec::with_capacity(parameter.sources.len());
    for (index, name) in parameter.sources.iter().enumerate() {
        let fault = |info: Option<&TensorInfo>, reason| CpuError::Checkpoint {
            file: info.map_or("", |info| checkpoint.file_name(info)).to_owned(),
            tensor: Some(name.clone()),
            reason,
        };
        let info = checkpoint.get(name).ok_or_else(|| fault(None, CheckpointReason::MissingTensor))?;
        let last = index + 1 == parameter.sources.len();
        let rows = info.shape.first().copied().unwrap_or(0);
        let same_rank = info.shape.len() == parameter.shape.len();
        let fits = same_rank && info.shape[1..] == parameter.shape[1..] && rows <= rows_left;
        if !fits || (last && rows != rows_left) {
            let mut expected = parameter.shape.clone();
            expected[0] = if last { rows_left } else { rows.min(rows_left) };
            let reason = CheckpointReason::WrongShape { expected, got: info.shape.clone() };
            return Err(fault(Some(info), reason));
        }
        let wrong = || fault(Some(info), CheckpointReason::WrongDType { got: info.dtype.name() });
        sources.push(Source { name, info, dtype: info.dtype.as_float().ok_or_else(wrong)? });
        rows_left -= rows;
    }
    Ok(sources)
}

fn read_vector(checkpoint: &Checkpoint, sources: &[Source<'_>]) -> Result<Vec<f32>, CpuError> {
    let mut vector = Vec::new();
    for source in sources {
        let mut bytes = vec![0; source.info.len as usize];
        checkpoint.read_into(source.name, 0, &mut bytes)?;
        vector.extend((0..bytes.len() / source.dtype.size()).map(|index| source.dtype.get(&bytes, index)));
    }
    Ok(vector)
}

/// Cut a matrix's tensors into pieces of whole rows.
fn cut<'a>(sources: &[Source<'a>], cols: usize, matrix: usize, pieces: &mut Vec<Piece<'a>>) {
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
