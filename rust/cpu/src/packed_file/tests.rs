//! Packed files are used only when they are whole and of the model as it is now, and never make a load fail.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use serde_json::json;
use twox_hash::XxHash3_64;

use super::write::check_room;
use super::*;
use crate::ops::{linear, qlinear};
use crate::quant::{QuantFormat, SEARCH_VERSION};
use crate::weights::Weight;

/// A temporary folder with a model and a folder for packed files, removed at the end.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const ROWS: usize = 70;
const COLS: usize = 192;
const A_MINUTE: Duration = Duration::from_secs(60);

impl Place {
    /// A model in two files, written a minute ago by their times.
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("pyrite-packed-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
        let place = Self(std::env::temp_dir().join(name));
        fs::create_dir_all(place.0.join("model")).unwrap();
        place.write_shard("a", 1, SystemTime::now() - A_MINUTE);
        place.write_shard("b", 2, SystemTime::now() - A_MINUTE);
        place
    }

    /// `a` has a matrix and a vector, `b` a matrix.
    fn write_shard(&self, name: &str, seed: u32, modified: SystemTime) {
        let matrix = 2 * ROWS * COLS;
        let mut header = json!({name: {"dtype": "BF16", "shape": [ROWS, COLS], "data_offsets": [0, matrix]}});
        let mut data: Vec<u8> =
            values(seed, ROWS * COLS).flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect();
        if name == "a" {
            header["norm"] = json!({"dtype": "F32", "shape": [5], "data_offsets": [matrix, matrix + 20]});
            data.extend(values(9, 5).flat_map(f32::to_le_bytes));
        }
        let header = header.to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&data);
        let path = self.0.join("model").join(format!("{name}.safetensors"));
        fs::write(&path, bytes).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    }

    fn folder(&self) -> PackedFolder {
        PackedFolder::new(self.0.join("cache").join("packed"))
    }

    /// Load as an executor does.
    fn load(&self) -> (Weights, PackedReport) {
        load_from(&self.folder(), &self.0, FOUR_BITS).unwrap()
    }

    /// Load and publish what was written.
    fn load_and_publish(&self) -> (Weights, PackedReport) {
        let (weights, mut report) = self.load();
        if let Some(file) = report.unpublished.take() {
            file.publish().unwrap();
        }
        (weights, report)
    }

    /// Names in the folder for packed files.
    fn packed(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.0.join("cache").join("packed"));
        entries.map_or_else(|_| Vec::new(), |entries| entries.map(|entry| entry.unwrap().path()).collect())
    }

    /// The one packed file.
    fn the_file(&self) -> PathBuf {
        let files = self.packed();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }
}

const FOUR_BITS: QuantFormat = QuantFormat::new(4, 32, false);

fn values(seed: u32, count: usize) -> impl Iterator<Item = f32> {
    (0..count as u32).map(move |at| {
        let mixed = (at + 1).wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(40503));
        (mixed >> 9) as f32 / (1 << 23) as f32 - 0.37
    })
}

fn program(layers: QuantFormat) -> Program {
    let head = QuantFormat::new(8, 64, true);
    let matrix = |name: &str, rows: usize, sources: &[&str], quant: Option<QuantFormat>| json!({"name": name, "kind": "matrix", "shape": [rows, COLS], "sources": sources, "quant": quant});
    let view = json!({"buffer": 0, "offset": 0, "width": COLS});
    let program = json!({
        "vocab_size": COLS, "buffers": [{"name": "x", "rows": "R", "width": COLS, "slot": 0}],
        "parameters": [
            matrix("both", 2 * ROWS, &["a", "b"], Some(layers)),
            matrix("head", ROWS, &["b"], Some(head)),
            matrix("float", ROWS, &["a"], None),
            {"name": "norm", "kind": "vector", "shape": [5], "sources": ["norm"]},
        ],
        "rope_tables": [], "kv_groups": [], "ops": [], "logits": view, "slots": [{"rows": "R", "width": COLS}],
    });
    serde_json::from_value(program).unwrap()
}

fn load_from(
    folder: &PackedFolder,
    place: &Path,
    layers: QuantFormat,
) -> Result<(Weights, PackedReport), CpuError> {
    let checkpoint = Checkpoint::open(&place.join("model"))?;
    folder.load(&program(layers), &checkpoint, None, &mut Pool::new(2)?, &mut |_, _| Ok(()))
}

fn bytes(weights: &Weights) -> Vec<&[u8]> {
    weights.items().iter().map(Weight::as_bytes).collect()
}

#[test]
fn the_second_load_reads_the_same_bytes_from_one_file() {
    let place = Place::new();
    let (first, report) = place.load_and_publish();
    assert!(!report.used && report.refused.is_none() && report.unwritten.is_none());
    for threads in [1, 3] {
        let checkpoint = Checkpoint::open(&place.0.join("model")).unwrap();
        let (mut calls, mut pool) = (Vec::new(), Pool::new(threads).unwrap());
        let mut progress = |done, total| {
            calls.push((done, total));
            Ok(())
        };
        let loaded = place.folder().load(&program(FOUR_BITS), &checkpoint, None, &mut pool, &mut progress);
        let (second, report) = loaded.unwrap();
        assert!(report.used && report.refused.is_none() && report.unpublished.is_none());
        assert_eq!(bytes(&first), bytes(&second));
        let total = first.bytes() as u64;
        assert_eq!((calls[0], calls[calls.len() - 1]), ((0, total), (total, total)));
    }
    let overhead = fs::metadata(place.the_file()).unwrap().len() - first.bytes() as u64;
    assert!(overhead < 4096, "{overhead}");
}

#[test]
fn a_model_without_integers_has_no_file() {
    let place = Place::new();
    let checkpoint = Checkpoint::open(&place.0.join("model")).unwrap();
    let mut floats = program(FOUR_BITS);
    floats.parameters.iter_mut().for_each(|parameter| parameter.quant = None);
    let mut pool = Pool::new(1).unwrap();
    let (_, report) = place.folder().load(&floats, &checkpoint, None, &mut pool, &mut |_, _| Ok(())).unwrap();
    assert!(!report.used && report.unpublished.is_none() && report.unwritten.is_none());
    assert!(place.packed().is_empty());
}

#[test]
fn a_changed_model_is_quantized_again_and_its_file_replaced() {
    let place = Place::new();
    let (first, _) = place.load_and_publish();
    let path = place.the_file();
    let changes: [(&str, &dyn Fn()); 3] = [
        ("one shard has other numbers", &|| place.write_shard("b", 3, SystemTime::now() - A_MINUTE / 2)),
        ("one nanosecond", &|| {
            let file = fs::File::options().write(true).open(place.0.join("model/a.safetensors")).unwrap();
            let modified = file.metadata().unwrap().modified().unwrap();
            file.set_modified(modified + Duration::from_nanos(1)).unwrap();
        }),
        ("a shard that nothing needs", &|| {
            let header = json!({"c": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}).to_string();
            let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
            let path = place.0.join("model/c.safetensors");
            fs::write(&path, bytes).unwrap();
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::now() - A_MINUTE).unwrap();
        }),
    ];
    let mut before = bytes(&first).concat();
    for (what, change) in changes {
        change();
        let (weights, report) = place.load_and_publish();
        assert!(matches!(report.refused, Some(PackedFault::Stale)), "{what}: {report:?}");
        let expected = load_from(&PackedFolder::new("/dev/null"), &place.0, FOUR_BITS).unwrap().0;
        assert_eq!(bytes(&weights), bytes(&expected), "{what}");
        assert_eq!(bytes(&weights).concat() != before, what == "one shard has other numbers");
        before = bytes(&weights).concat();
        assert_eq!(place.the_file(), path);
        assert!(place.load().1.used, "{what}");
    }
}

#[test]
fn each_quantization_has_its_file() {
    let place = Place::new();
    place.load_and_publish();
    let other = QuantFormat { symmetric: true, ..FOUR_BITS };
    let (_, report) = load_from(&place.folder(), &place.0, other).unwrap();
    assert!(!report.used && report.refused.is_none());
    report.unpublished.unwrap().publish().unwrap();
    assert_eq!(place.packed().len(), 2);
    assert!(load_from(&place.folder(), &place.0, other).unwrap().1.used && place.load().1.used);
}

#[test]
fn files_that_were_just_written_are_not_trusted_to_keep_their_time() {
    let place = Place::new();
    let whole_second = SystemTime::UNIX_EPOCH + Duration::from_secs(now_seconds());
    place.write_shard("b", 2, whole_second);
    let (_, report) = place.load();
    assert!(matches!(report.unwritten, Some(PackedFault::TooFresh)), "{report:?}");
    assert!(place.packed().is_empty());
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn a_file_that_cannot_be_read_or_written_is_a_note() {
    let place = Place::new();
    let expected = bytes(&place.load().0).concat();
    for folder in ["/dev/null", "/dev/null/packed", "/proc/pyrite"] {
        let (weights, report) = load_from(&PackedFolder::new(folder), &place.0, FOUR_BITS).unwrap();
        assert!(!report.used && report.unpublished.is_none());
        assert!(matches!(report.unwritten, Some(PackedFault::Io { .. })), "{folder}: {report:?}");
        assert_eq!(bytes(&weights).concat(), expected);
    }
    // A folder where the file should be.
    let checkpoint = Checkpoint::open(&place.0.join("model")).unwrap();
    let name = Key::new(&program(FOUR_BITS), &checkpoint, None).unwrap().file_name();
    fs::create_dir_all(place.0.join("cache/packed").join(name)).unwrap();
    let (_, report) = place.load();
    assert!(matches!(report.refused, Some(PackedFault::NotARegularFile)));
    let fault = report.unpublished.unwrap().publish().unwrap_err();
    assert!(fault.to_string().starts_with("cannot be renamed: "), "{fault}");
    assert_eq!(place.packed().len(), 1, "the unpublished file is gone");
}

#[test]
fn a_file_needs_room_for_others_besides() {
    let cases = [(100, None, true), (100, Some(200), true), (100, Some(199), false), (0, Some(0), true)];
    for (bytes, free, fits) in cases {
        assert_eq!(check_room(bytes, free).is_ok(), fits, "{bytes} {free:?}");
    }
    let fault = check_room(5 << 30, Some(5 << 30)).unwrap_err().to_string();
    assert_eq!(fault, "6442450944 bytes are needed on the disk, 5368709120 are free");
    assert!(check_room(u64::MAX, Some(u64::MAX)).is_ok() && check_room(u64::MAX, Some(1)).is_err());
}

#[test]
fn stopping_leaves_no_file_behind() {
    let place = Place::new();
    let checkpoint = Checkpoint::open(&place.0.join("model")).unwrap();
    let mut pool = Pool::new(2).unwrap();
    let mut stop_at = |call: usize| {
        let mut calls = 0;
        let mut progress = |_, _| {
            calls += 1;
            if calls > call { Err(Interrupted) } else { Ok(()) }
        };
        let loaded = place.folder().load(&program(FOUR_BITS), &checkpoint, None, &mut pool, &mut progress);
        match loaded {
            Ok(_) => None,
            Err(error) => Some(matches!(error, CpuError::Interrupted)),
        }
    };
    let mut call = 0;
    while let Some(is_interrupted) = stop_at(call) {
        assert!(is_interrupted && place.packed().is_empty(), "call {call}");
        call += 1;
    }
    assert!(call >= 3, "{call} calls: before, while reading, while writing");
    place.load_and_publish();
    let mut pool = Pool::new(2).unwrap();
    let stopped =
        place.folder().load(&program(FOUR_BITS), &checkpoint, None, &mut pool, &mut |_, _| Err(Interrupted));
    assert!(matches!(stopped, Err(CpuError::Interrupted)));
    assert!(place.load().1.used);
}

#[test]
fn loads_at_once_all_succeed() {
    let place = Place::new();
    let expected = bytes(&place.load().0).concat();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let (weights, report) = place.load_and_publish();
                    assert!(report.refused.is_none() && report.unwritten.is_none(), "{report:?}");
                    assert_eq!(bytes(&weights).concat(), expected);
                }
            });
        }
    });
    place.the_file();
    assert!(place.load().1.used);
}

#[test]
fn what_a_killed_writer_left_goes_and_what_another_writes_stays() {
    let place = Place::new();
    let (_, report) = place.load();
    let other = report.unpublished.unwrap();
    let name = place.the_file().file_name().unwrap().to_str().unwrap()[..16].to_owned();
    let abandoned = place.0.join("cache/packed").join(name + ".0000000000000001.tmp");
    fs::write(&abandoned, b"half").unwrap();
    place.load_and_publish();
    assert!(!abandoned.exists());
    assert_eq!(place.packed().len(), 2, "the other writer's and the published one");
    other.publish().unwrap();
    assert!(place.load().1.used);
    place.the_file();
}

#[test]
fn a_writer_keeps_its_file_while_others_tidy_up() {
    let place = Place::new();
    place.load_and_publish();
    let (file, done) = (place.the_file(), AtomicBool::new(false));
    let folder = file.parent().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    write::remove_abandoned(folder, &file);
                }
            });
        }
        let lost = (0..2000).filter(|_| {
            let writer = write::Unpublished::create(&file).unwrap();
            std::thread::yield_now();
            !writer.temporary.exists()
        });
        let lost = lost.count();
        done.store(true, Ordering::Relaxed);
        assert_eq!(lost, 0, "files that another load removed");
    });
    place.the_file();
}

/// Damage a file, load, and make sure that the weights are right and the file is whole again.
fn survives(place: &Place, expected: &[u8], what: &str, damage: impl FnOnce(&fs::File)) {
    let path = place.the_file();
    let whole = fs::read(&path).unwrap();
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    damage(&file);
    drop(file);
    let is_padding = fs::metadata(&path).unwrap().len() == whole.len() as u64 && {
        let now = fs::read(&path).unwrap();
        let mut differs = (0..now.len()).filter(|&at| now[at] != whole[at]);
        differs.all(|at| is_between_parameters(place, &whole, at))
    };
    let (weights, report) = place.load_and_publish();
    assert_eq!(bytes(&weights).concat(), expected, "{what}");
    assert_eq!(report.used, is_padding, "{what}: {report:?}");
    assert_eq!(report.refused.is_none(), is_padding, "{what}");
    if !is_padding {
        assert!(fs::read(&path).unwrap() == whole, "{what}: not rewritten");
    }
}

/// Whether a byte of the file is one of the zeros between parameters, which nobody reads.
fn is_between_parameters(place: &Place, whole: &[u8], at: usize) -> bool {
    let checkpoint = Checkpoint::open(&place.0.join("model")).unwrap();
    let program = program(FOUR_BITS);
    let weights = Weights::zeroed(&program, &checkpoint, None).unwrap();
    let header = Header::new(&Key::new(&program, &checkpoint, None).unwrap(), &weights);
    let first = header.chunks()[0].0 as usize;
    assert_eq!(whole.len() as u64, header.file_bytes());
    at >= first
        && !header
            .chunks()
            .iter()
            .any(|&(begin, bytes)| (begin as usize..begin as usize + bytes).contains(&at))
}

#[test]
fn hostile_headers_are_refused() {
    let place = Place::new();
    let expected = bytes(&place.load_and_publish().0).concat();
    let whole = fs::read(place.the_file()).unwrap();
    let end_of_key = whole.windows(2).rposition(|pair| pair == b"}]").unwrap();
    let header_bytes = (end_of_key + 160).next_multiple_of(8);
    for at in (0..header_bytes).step_by(8) {
        for value in [u64::MAX, 1 << 63, (1 << 62) + 1, 0, 7] {
            survives(&place, &expected, &format!("{value:#x} at {at}"), |file| {
                file.write_all_at(&value.to_le_bytes(), at as u64).unwrap();
            });
        }
    }
    for length in [0, 1, 7, 8, 47, 48, 64, 1000] {
        survives(&place, &expected, &format!("{length} bytes"), |file| file.set_len(length).unwrap());
    }
    survives(&place, &expected, "longer", |file| {
        let length = file.metadata().unwrap().len();
        file.set_len(length + 1).unwrap();
    });
    survives(&place, &expected, "sparse and huge", |file| file.set_len(1 << 40).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_damage_is_noticed(damages in proptest::collection::vec((0.0..1.0f64, 1..=255u8), 1..4), cut in 0.0..3.0f64) {
        let place = Place::new();
        let expected = bytes(&place.load_and_publish().0).concat();
        survives(&place, &expected, &format!("{damages:?} {cut}"), |file| {
            let length = file.metadata().unwrap().len();
            for (share, flip) in &damages {
                let at = (share * length as f64) as u64;
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ flip], at).unwrap();
            }
            if cut < 1.0 {
                file.set_len((cut * length as f64) as u64).unwrap();
            }
        });
    }
}

/// Hashes of packed bytes per version. A hash that no longer fits means that the version must be raised: files that
/// users have would be taken for the new layout. Then put the new version and hash here.
#[test]
fn the_versions_of_the_layouts_are_raised_when_bytes_change() {
    const COLS: usize = 384;
    let source: Vec<u8> = values(4, ROWS * COLS).flat_map(f32::to_le_bytes).collect();
    let (mut floats, mut integers) = (Vec::new(), Vec::new());
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        let matrix = linear::PackedMatrix::zeroed(ROWS - 1, COLS - 1, dtype).unwrap();
        let source = &source[..4 * (ROWS - 1) * (COLS - 1)];
        // SAFETY: one thread.
        unsafe { matrix.pack_rows(0, source, DType::F32) };
        floats.extend_from_slice(matrix.as_bytes());
    }
    let mut formats = Vec::new();
    for (bits, symmetric) in [(4, false), (4, true), (8, false), (8, true)] {
        formats.extend([32, 64, 128].map(|group_size| QuantFormat::new(bits, group_size, symmetric)));
    }
    formats.push(QuantFormat::SHARED);
    for format in formats {
        let matrix = qlinear::QuantizedMatrix::zeroed(ROWS, COLS, format).unwrap();
        let mut own = qlinear::PanelQuantizer::new(&matrix).unwrap();
        // SAFETY: one thread.
        unsafe { matrix.quantize_rows(0, &source, DType::F32, &mut own) }.unwrap();
        integers.extend_from_slice(matrix.as_bytes());
    }
    let found = [XxHash3_64::oneshot(&floats), XxHash3_64::oneshot(&integers)];
    let versions = [linear::LAYOUT_VERSION, qlinear::LAYOUT_VERSION, SEARCH_VERSION];
    assert_eq!(
        (versions, found),
        ([1, 1, 1], [14014546707625433977, 7065319027948412718]),
        "see the comment on this test"
    );
}
