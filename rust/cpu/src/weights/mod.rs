//! Loads a program's parameters: tensors are read in pieces and go straight into their final layout.
//!
//! Peak memory is the packed model and one piece per worker. Shapes and dtypes of all parameters are checked
//! before the first byte of data is read.

pub(crate) mod pieces;

use std::sync::{Mutex, PoisonError};

use crate::checkpoint::{Checkpoint, CheckpointReason};
use crate::error::CpuError;
use crate::ops::linear::PackedMatrix;
use crate::ops::qlinear::{PanelQuantizer, QuantizedMatrix};
use crate::pool::Pool;
use crate::program::{Parameter, ParameterKind, Program};
use crate::quant::QuantFormat;
use crate::tensor::DType;

use pieces::{Piece, Source, cut, fault, find};

/// What a progress callback returns to stop a load, which then ends with [`CpuError::Interrupted`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted;

/// Called with (bytes done, bytes in all) from the thread that loads.
pub type Progress<'a> = dyn FnMut(u64, u64) -> Result<(), Interrupted> + 'a;

/// The loaded parameters, in the order of the program.
pub struct Weights {
    items: Vec<Weight>,
}

/// A loaded parameter.
pub enum Weight {
    /// Float weights of a matmul.
    Matrix(PackedMatrix),
    /// Integer weights of a matmul.
    Quantized(QuantizedMatrix),
    /// A bias or a norm's weights.
    Vector(Vec<f32>),
}

impl Weight {
    /// Bytes of memory held, padding included.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Matrix(matrix) => matrix.bytes(),
            Self::Quantized(matrix) => matrix.bytes(),
            Self::Vector(vector) => size_of_val(&vector[..]),
        }
    }

    /// All bytes held. Their order is private to each kind of matrix.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Matrix(matrix) => matrix.as_bytes(),
            Self::Quantized(matrix) => matrix.as_bytes(),
            Self::Vector(vector) => {
                // SAFETY: numbers without padding, borrowed as long.
                unsafe { std::slice::from_raw_parts(vector.as_ptr().cast(), size_of_val(&vector[..])) }
            }
        }
    }

    /// All bytes held, to be filled with those of an equal weight. Any content is memory safe.
    pub(crate) fn as_bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Matrix(matrix) => matrix.as_bytes_mut(),
            Self::Quantized(matrix) => matrix.as_bytes_mut(),
            Self::Vector(vector) => {
                // SAFETY: as above; any bytes are numbers, and the borrow is the only one.
                unsafe {
                    std::slice::from_raw_parts_mut(vector.as_mut_ptr().cast(), size_of_val(&vector[..]))
                }
            }
        }
    }
}

/// A worker's memory for each quantized matrix that it meets, kept for the next piece of the same one.
type Own = Mutex<Option<(usize, PanelQuantizer)>>;

impl Weights {
    /// Load every parameter of `program`. Matrices keep their dtype unless `weight_dtype` is given; a matrix whose
    /// sources differ in dtype becomes f32, which holds them all exactly. A matrix with a quantized format is made
    /// from the checkpoint's values, whatever `weight_dtype` says. Vectors become f32.
    ///
    /// # Errors
    /// [`CpuError::Checkpoint`] for a tensor that is missing, of the wrong shape, of another dtype than F32, F16 and
    /// BF16, that cannot be read, or is to be quantized and not finite; [`CpuError::OutOfMemory`];
    /// [`CpuError::Interrupted`].
    pub fn load(
        program: &Program,
        checkpoint: &Checkpoint,
        weight_dtype: Option<DType>,
        pool: &mut Pool,
        progress: &mut Progress<'_>,
    ) -> Result<Self, CpuError> {
        let mut weights = Self::zeroed(program, checkpoint, weight_dtype)?;
        weights.fill(program, checkpoint, pool, progress)?;
        Ok(weights)
    }

    /// What [`load`](Self::load) gives, but with zeros; large blocks take no memory before they are written to. All
    /// checks that need no data are made.
    pub(crate) fn zeroed(
        program: &Program,
        checkpoint: &Checkpoint,
        weight_dtype: Option<DType>,
    ) -> Result<Self, CpuError> {
        let mut items = Vec::with_capacity(program.parameters.len());
        for parameter in &program.parameters {
            let sources = find(parameter, checkpoint)?;
            items.push(match (&parameter.shape[..], parameter.kind, parameter.quant) {
                (&[rows, cols], ParameterKind::Matrix, Some(format)) => {
                    Weight::Quantized(QuantizedMatrix::zeroed(rows, cols, format)?)
                }
                (&[rows, cols], ParameterKind::Matrix, None) => {
                    let dtype = matrix_dtype(&sources, weight_dtype);
                    Weight::Matrix(PackedMatrix::zeroed(rows, cols, dtype)?)
                }
                (shape, ..) => Weight::Vector(vec![0.0; shape.iter().product()]),
            });
        }
        Ok(Self { items })
    }

    /// Read all tensors and pack or quantize them.
    fn fill(
        &mut self,
        program: &Program,
        checkpoint: &Checkpoint,
        pool: &mut Pool,
        progress: &mut Progress<'_>,
    ) -> Result<(), CpuError> {
        let sources = program.parameters.iter().map(|parameter| find(parameter, checkpoint));
        let sources: Vec<Vec<Source<'_>>> = sources.collect::<Result<_, _>>()?;
        let total = sources.iter().flatten().map(|source| source.info.len).sum();
        let mut pieces = Vec::new();
        let mut done = 0;
        progress(done, total).map_err(|Interrupted| CpuError::Interrupted)?;
        for (index, (item, sources)) in self.items.iter_mut().zip(&sources).enumerate() {
            if let Weight::Vector(vector) = item {
                *vector = read_vector(checkpoint, sources)?;
                done += sources.iter().map(|source| source.info.len).sum::<u64>();
            } else {
                cut(sources, program.parameters[index].shape[1], index, &mut pieces);
            }
        }
        let own: Vec<Own> = (0..pool.count()).map(|_| Mutex::new(None)).collect();
        let mut after_round = |bytes| {
            done += bytes;
            progress(done, total).map_err(|Interrupted| CpuError::Interrupted)
        };
        pieces::read(checkpoint, &pieces, pool, &mut after_round, &|worker, piece, bytes| {
            self.pack(checkpoint, piece, bytes, &own[worker])
        })
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
            needed = needed.saturating_add(parameter_bytes(parameter, checkpoint, weight_dtype)?);
        }
        Ok(needed)
    }

    /// All parameters.
    pub(crate) fn items(&self) -> &[Weight] {
        &self.items
    }

    /// All parameters, to write.
    pub(crate) fn items_mut(&mut self) -> &mut [Weight] {
        &mut self.items
    }

    /// The parameter with that index in the program.
    pub fn get(&self, index: usize) -> Option<&Weight> {
        self.items.get(index)
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        self.items.iter().map(Weight::bytes).sum()
    }

    /// Store a piece's rows in its matrix.
    fn pack(
        &self,
        checkpoint: &Checkpoint,
        piece: &Piece<'_>,
        bytes: &[u8],
        own: &Own,
    ) -> Result<(), CpuError> {
        match self.get(piece.matrix) {
            // SAFETY: pieces are disjoint rows, each is taken by one worker, and nobody reads the matrix yet.
            Some(Weight::Matrix(matrix)) => unsafe { matrix.pack_rows(piece.first_row, bytes, piece.dtype) },
            Some(Weight::Quantized(matrix)) => {
                let mut own = own.lock().unwrap_or_else(PoisonError::into_inner);
                let quantizer = match &mut *own {
                    Some((index, quantizer)) if *index == piece.matrix => quantizer,
                    other => &mut other.insert((piece.matrix, PanelQuantizer::new(matrix)?)).1,
                };
                // SAFETY: as above.
                let finite = unsafe { matrix.quantize_rows(piece.first_row, bytes, piece.dtype, quantizer) };
                finite.map_err(|_| fault(checkpoint, piece.tensor, CheckpointReason::NotFinite))?;
            }
            Some(Weight::Vector(_)) | None => {}
        }
        Ok(())
    }
}

fn parameter_bytes(
    parameter: &Parameter,
    checkpoint: &Checkpoint,
    weight_dtype: Option<DType>,
) -> Result<usize, CpuError> {
    let sources = find(parameter, checkpoint)?;
    let bytes = match (&parameter.shape[..], parameter.kind, parameter.quant) {
        (&[rows, cols], ParameterKind::Matrix, quant) => {
            let dtype = matrix_dtype(&sources, weight_dtype);
            matrix_bytes(rows, cols, quant.map_or(MatrixForm::Float(dtype), MatrixForm::Integer))
        }
        (shape, ..) => shape.iter().try_fold(DType::F32.size(), |bytes, size| bytes.checked_mul(*size)),
    };
    Ok(bytes.unwrap_or(usize::MAX))
}

/// What the weights of a matrix are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatrixForm {
    /// Floats of this type.
    Float(DType),
    /// Integers in this format.
    Integer(QuantFormat),
}

/// Bytes of a loaded matrix, padding included; None when they overflow.
pub fn matrix_bytes(rows: usize, cols: usize, form: MatrixForm) -> Option<usize> {
    match form {
        MatrixForm::Float(dtype) => PackedMatrix::needed_bytes(rows, cols, dtype),
        MatrixForm::Integer(format) => QuantizedMatrix::needed_bytes(rows, cols, format),
    }
}

/// The type that a matrix is kept in.
fn matrix_dtype(sources: &[Source<'_>], wanted: Option<DType>) -> DType {
    let first = sources.first().map_or(DType::F32, |source| source.dtype);
    let same = sources.iter().all(|source| source.dtype == first);
    wanted.unwrap_or(if same { first } else { DType::F32 })
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
