use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::*;

/// A folder under the system's temporary one, removed at the end.
struct TempFolder(PathBuf);

impl TempFolder {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("pyrite-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.0.join(name), bytes).unwrap();
    }

    fn refused(&self) -> (String, Option<String>, CheckpointReason) {
        refused(&self.0)
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn refused(path: &Path) -> (String, Option<String>, CheckpointReason) {
    let started = Instant::now();
    let outcome = Checkpoint::open(path);
    assert!(started.elapsed() < Duration::from_secs(2), "took {:?}", started.elapsed());
    match outcome {
        Err(CpuError::Checkpoint { file, tensor, reason }) => (file, tensor, reason),
        other => panic!("expected a checkpoint error, got {other:?}"),
    }
}

fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn entry(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

/// Code and tensor with which a single file is refused.
fn single(bytes: &[u8]) -> (&'static str, Option<String>) {
    let folder = TempFolder::new();
    folder.write("model.safetensors", bytes);
    let (file, tensor, reason) = folder.refused();
    assert_eq!(file, "model.safetensors");
    assert!(!reason.to_string().is_empty());
    (reason.code(), tensor)
}

fn with_header(header: &str, data_bytes: usize) -> (&'static str, Option<String>) {
    single(&safetensors(header, &vec![0; data_bytes]))
}

#[test]
fn a_good_file_opens_and_reads_back() {
    let folder = TempFolder::new();
    // Listed out of order, with metadata, a scalar, an empty tensor and trailing spaces: all allowed.
    let entries = [
        entry("b", "I64", "[]", 6, 14),
        entry("a", "BF16", "[3, 1]", 0, 6),
        entry("none", "F32", "[0, 7]", 6, 6),
    ];
    let header = format!(r#"{{"__metadata__":{{"format":"pt"}},{}}}   "#, entries.join(","));
    let data: Vec<u8> = (1..=14).collect();
    folder.write("model.safetensors", safetensors(&header, &data));
    let checkpoint = Checkpoint::open(&folder.0).unwrap();
    let names: Vec<&str> = checkpoint.tensors().map(|(name, _)| name).collect();
    assert_eq!(names, ["a", "b", "none"]);
    assert_eq!(checkpoint.num_bytes(), 14);
    let info = checkpoint.get("a").unwrap();
    assert_eq!((info.dtype.name(), &info.shape[..], info.len), ("BF16", &[3, 1][..], 6));
    let mut out = [0; 3];
    checkpoint.read_into("b", 5, &mut out).unwrap();
    assert_eq!(out, [12, 13, 14]);
    for (offset, len) in [(6, 3), (u64::MAX, 1), (9, 0)] {
        let error = checkpoint.read_into("b", offset, &mut vec![0; len]).unwrap_err();
        let reason = CheckpointReason::ReadOutOfRange { offset, len: len as u64, tensor_bytes: 8 };
        assert_eq!(error.to_string(), format!("model.safetensors, tensor b: {reason}"));
    }
    assert!(checkpoint.read_into("c", 0, &mut []).is_err());
}

#[test]
fn bad_prefixes_are_refused_before_anything_is_allocated() {
    for len in 0..8 {
        assert_eq!(single(&vec![0; len]).0, "header_too_small");
    }
    for claimed in [MAX_HEADER_BYTES + 1, u64::MAX - 7, u64::MAX] {
        assert_eq!(single(&claimed.to_le_bytes()).0, "header_too_large");
    }
    assert_eq!(single(&3u64.to_le_bytes()).0, "header_past_end");
    assert_eq!(single(&MAX_HEADER_BYTES.to_le_bytes()).0, "header_past_end");
}

#[test]
fn bad_json_is_refused() {
    let mut not_utf8 = safetensors("{\"a\":1}", &[]);
    not_utf8[10] = 0xff;
    assert_eq!(single(&not_utf8).0, "not_utf8");
    for header in ["", " {}", "[]", "{", "{}x", "null", "{\"a\":1}", "{\"__metadata__\":{\"a\":1}}"] {
        assert_eq!(with_header(header, 0).0, "not_json", "{header:?}");
    }
    let deep = "[".repeat(100_000);
    for header in [
        deep.clone(),
        format!("{{\"a\":{deep}"),
        format!("{{\"a\":{deep}{}}}", "]".repeat(100_000)),
        format!("{{\"__metadata__\":{}{}}}", "{\"a\":".repeat(100_000), "}".repeat(100_000)),
    ] {
        assert_eq!(with_header(&header, 0).0, "not_json");
    }
    let shape = format!("{deep}{}", "]".repeat(100_000));
    let header = format!("{{{}}}", entry("a", "F32", &shape, 0, 4));
    assert_eq!(with_header(&header, 4), ("bad_shape", Some("a".into())));
    let unknown = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"more":1}}"#;
    assert_eq!(with_header(unknown, 4), ("not_json", Some("a".into())));
}

#[test]
fn names_that_appear_twice_are_refused() {
    let twice = format!("{{{},{}}}", entry("a", "U8", "[1]", 0, 1), entry("a", "U8", "[1]", 1, 2));
    assert_eq!(with_header(&twice, 2).0, "duplicate_key");
    let field = r#"{"a":{"dtype":"F32","dtype":"U8","shape":[1],"data_offsets":[0,4]}}"#;
    assert_eq!(with_header(field, 4), ("duplicate_key", Some("a".into())));
    let metadata = r#"{"__metadata__":{"x":"1","x":"2"}}"#;
    assert_eq!(with_header(metadata, 0).0, "duplicate_key");
}

#[test]
fn bad_entries_are_refused_with_the_tensors_name() {
    let case = |dtype: &str, shape: &str, end: u64| {
        let (code, tensor) = with_header(&format!("{{{}}}", entry("w", dtype, shape, 0, end)), end as usize);
        assert_eq!(tensor.as_deref(), Some("w"));
        code
    };
    for shape in ["[-1]", "[1.0]", "[\"1\"]", "[1e0]", "1", "null", "[null]", "[18446744073709551616]"] {
        assert_eq!(case("F32", shape, 4), "bad_shape", "{shape}");
    }
    for shape in ["[4294967296,4294967296]", "[0,4294967296,4294967296]", "[18446744073709551615]"] {
        assert_eq!(case("F32", shape, 0), "bad_shape", "{shape}");
    }
    for dtype in ["F31", "f32", "", "BFLOAT16"] {
        assert_eq!(case(dtype, "[1]", 4), "unknown_dtype", "{dtype}");
    }
    assert_eq!(case("F4", "[3]", 1), "misaligned");
    assert_eq!(case("F4", "[3]", 2), "misaligned");
    assert_eq!(case("F6_E2M3", "[2]", 2), "misaligned");
    assert_eq!(case("F32", "[2]", 4), "size_mismatch");
    assert_eq!(case("F16", "[2]", 8), "size_mismatch");
    for offsets in ["[4,0]", "[-4,0]", "[0]", "[0,4,8]", "[0.0,4]", "{}", "[0,1e99]"] {
        let header = format!(r#"{{"w":{{"dtype":"F32","shape":[1],"data_offsets":{offsets}}}}}"#);
        assert_eq!(with_header(&header, 4), ("invalid_offset", Some("w".into())), "{offsets}");
    }
}

#[test]
fn every_byte_must_belong_to_one_tensor() {
    let two = |a: (u64, u64), b: (u64, u64), data_bytes: usize| {
        let of = |name, (begin, end)| entry(name, "U8", &format!("[{}]", end - begin), begin, end);
        with_header(&format!("{{{},{}}}", of("a", a), of("b", b)), data_bytes)
    };
    assert_eq!(two((0, 4), (3, 6), 6), ("overlap", Some("b".into())));
    assert_eq!(two((0, 4), (0, 4), 4), ("overlap", Some("b".into())));
    assert_eq!(two((4, 6), (0, 3), 6), ("hole", Some("a".into())));
    assert_eq!(two((1, 4), (4, 6), 6), ("hole", Some("a".into())));
    assert_eq!(two((0, 4), (4, 6), 7).0, "trailing_bytes");
    assert_eq!(two((0, 4), (4, 6), 5), ("truncated", Some("b".into())));
    assert_eq!(with_header("{}", 1).0, "trailing_bytes");
    let far = (1 << 62, (1 << 62) + 1);
    assert_eq!(two((0, 4), far, 4), ("hole", Some("b".into())));
}

#[test]
fn a_file_cut_at_any_page_is_refused_with_both_lengths() {
    let header = format!("{{{}}}", entry("w", "F32", "[16384]", 0, 65536));
    let whole = safetensors(&header, &[7; 65536]);
    for cut in (0..whole.len()).step_by(4096).chain([whole.len() - 1]) {
        let folder = TempFolder::new();
        folder.write("model.safetensors", &whole[..cut]);
        match folder.refused().2 {
            CheckpointReason::Truncated { expected, got } => {
                assert_eq!((expected, got), (whole.len() as u64, cut as u64));
            }
            other => assert!(cut < 100, "cut at {cut}: {other}"),
        }
    }
}

fn tensor_file(name: &str) -> Vec<u8> {
    safetensors(&format!("{{{}}}", entry(name, "U8", "[1]", 0, 1)), &[1])
}

fn index_of(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = pairs.iter().map(|(t, f)| format!("{t:?}:{f:?}")).collect();
    format!(r#"{{"metadata":{{"total_size":2}},"weight_map":{{{}}}}}"#, pairs.join(","))
}

const INDEX: &str = "model.safetensors.index.json";

#[test]
fn shards_and_index_must_agree_both_ways() {
    let folder = TempFolder::new();
    folder.write("1.safetensors", tensor_file("a"));
    folder.write("2.safetensors", tensor_file("b"));
    assert_eq!(Checkpoint::open(&folder.0).unwrap().tensors().len(), 2);
    folder.write(INDEX, index_of(&[("a", "1.safetensors"), ("b", "2.safetensors")]));
    assert_eq!(Checkpoint::open(&folder.0).unwrap().tensors().len(), 2);

    folder.write(INDEX, index_of(&[("a", "1.safetensors"), ("b", "3.safetensors"), ("c", "4.safetensors")]));
    let (file, _, reason) = folder.refused();
    assert_eq!((file.as_str(), reason.code()), (INDEX, "missing_shard"));
    assert_eq!(reason.to_string(), "missing files: 3.safetensors, 4.safetensors");

    folder.write(INDEX, index_of(&[("a", "1.safetensors"), ("b", "1.safetensors")]));
    assert_eq!(folder.refused().2.code(), "index_mismatch");
    folder.write(INDEX, index_of(&[("a", "2.safetensors"), ("b", "1.safetensors")]));
    assert_eq!(folder.refused().2.code(), "index_mismatch");
    let absent: Vec<String> = (10..35).map(|i| format!("x{i}")).collect();
    let mut pairs = vec![("a", "1.safetensors")];
    pairs.extend(absent.iter().map(|name| (name.as_str(), "1.safetensors")));
    folder.write(INDEX, index_of(&pairs));
    let text = folder.refused().2.to_string();
    assert!(text.contains("x10") && text.contains("x19") && !text.contains("x20"), "{text}");
    assert!(text.ends_with("and 15 more (25 in all)"), "{text}");

    folder.write("2.safetensors", tensor_file("a"));
    folder.write(INDEX, index_of(&[("a", "1.safetensors"), ("b", "2.safetensors")]));
    let (file, tensor, reason) = folder.refused();
    assert_eq!((file.as_str(), tensor.as_deref()), ("2.safetensors", Some("a")));
    assert_eq!(reason.code(), "duplicate_tensor");

    let header = format!("{{{},{}}}", entry("b", "U8", "[1]", 0, 1), entry("c", "U8", "[1]", 1, 2));
    folder.write("2.safetensors", safetensors(&header, &[1, 2]));
    let (file, _, reason) = folder.refused();
    assert_eq!((file.as_str(), reason.code()), ("2.safetensors", "index_mismatch"));
}

#[test]
fn bad_indexes_are_refused() {
    let folder = TempFolder::new();
    folder.write("1.safetensors", tensor_file("a"));
    let deep = format!(r#"{{"weight_map":{}"#, "{\"a\":".repeat(100_000));
    for (index, code) in [
        ("", "not_json"),
        ("{}", "not_json"),
        ("[]", "not_json"),
        (r#"{"weight_map":[]}"#, "not_json"),
        (r#"{"weight_map":{"a":1}}"#, "not_json"),
        (r#"{"weight_map":{"a":"1.safetensors","a":"1.safetensors"}}"#, "duplicate_key"),
        (r#"{"weight_map":{},"weight_map":{}}"#, "duplicate_key"),
        (r#"{"weight_map":{}}"#, "no_weights"),
        (r#"{"weight_map":{"a":"pytorch_model.bin"}}"#, "unsafe_format"),
        (deep.as_str(), "not_json"),
    ] {
        folder.write(INDEX, index);
        let (file, _, reason) = folder.refused();
        assert_eq!((file.as_str(), reason.code()), (INDEX, code), "{index:.60}");
    }
    folder.write(INDEX, [b'{', 0xff]);
    assert_eq!(folder.refused().2.code(), "not_utf8");
    // Sparse: the length is refused before a byte is read.
    fs::File::create(folder.0.join(INDEX)).unwrap().set_len(MAX_INDEX_BYTES + 1).unwrap();
    assert_eq!(folder.refused().2.code(), "index_too_large");
}

#[test]
fn paths_that_leave_the_folder_open_nothing() {
    let outer = TempFolder::new();
    outer.write("outside.safetensors", tensor_file("a"));
    let folder = TempFolder(outer.0.join("model"));
    fs::create_dir(&folder.0).unwrap();
    let absolute = outer.0.join("outside.safetensors");
    for name in
        ["../outside.safetensors", absolute.to_str().unwrap(), "a\0.safetensors", "a/../../b.safetensors"]
    {
        folder.write(INDEX, serde_json::json!({"weight_map": {"a": name}}).to_string());
        assert_eq!(folder.refused().2.code(), "unsafe_path", "{name}");
    }
    fs::remove_file(folder.0.join(INDEX)).unwrap();
    std::os::unix::fs::symlink("../outside.safetensors", folder.0.join("model.safetensors")).unwrap();
    assert_eq!(folder.refused().2.code(), "unsafe_path");
}

#[test]
fn links_into_the_blobs_of_a_hub_cache_are_followed() {
    let cache = TempFolder::new();
    let repository = cache.0.join("models--org--name");
    let snapshot = repository.join("snapshots/abc");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repository.join("blobs")).unwrap();
    fs::write(repository.join("blobs/1234"), tensor_file("a")).unwrap();
    let link = snapshot.join("model.safetensors");
    std::os::unix::fs::symlink("../../blobs/1234", &link).unwrap();
    assert_eq!(Checkpoint::open(&snapshot).unwrap().tensors().len(), 1);
    fs::remove_file(&link).unwrap();
    fs::write(repository.join("refs"), tensor_file("a")).unwrap();
    std::os::unix::fs::symlink("../../refs", &link).unwrap();
    assert_eq!(refused(&snapshot).2.code(), "unsafe_path");
    // The same links outside a cache are refused.
    let moved = cache.0.join("other");
    fs::rename(&repository, &moved).unwrap();
    fs::remove_file(moved.join("snapshots/abc/model.safetensors")).unwrap();
    std::os::unix::fs::symlink("../../blobs/1234", moved.join("snapshots/abc/model.safetensors")).unwrap();
    assert_eq!(refused(&moved.join("snapshots/abc")).2.code(), "unsafe_path");
}

#[test]
fn what_is_not_a_regular_file_is_refused_without_waiting() {
    let folder = TempFolder::new();
    let path = folder.0.join("model.safetensors");
    fs::create_dir(&path).unwrap();
    assert_eq!(folder.refused().2.code(), "not_a_regular_file");
    fs::remove_dir(&path).unwrap();
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a valid C string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    assert_eq!(folder.refused().2.code(), "not_a_regular_file");
    fs::remove_file(&path).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert_eq!(folder.refused().2.code(), "not_a_regular_file");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    assert_eq!(folder.refused().2.code(), "unsafe_path");
}

#[test]
fn folders_without_safetensors_are_refused() {
    let folder = TempFolder::new();
    assert_eq!(folder.refused().2.code(), "no_weights");
    folder.write("pytorch_model.bin", [0; 4]);
    assert_eq!(folder.refused().2.code(), "unsafe_format");
    assert_eq!(refused(&folder.0.join("absent")).2.code(), "io");
    assert_eq!(refused(&folder.0.join("pytorch_model.bin")).2.code(), "io");
    for i in 0..=MAX_FOLDER_ENTRIES {
        folder.write(&format!("{i}.safetensors"), []);
    }
    assert_eq!(folder.refused().2.code(), "too_many_files");
}

#[test]
fn a_file_that_changes_after_it_was_opened_is_noticed() {
    for new_len in [None, Some(40), Some(5000)] {
        let folder = TempFolder::new();
        let header = format!("{{{}}}", entry("w", "U8", "[1000]", 0, 1000));
        folder.write("model.safetensors", safetensors(&header, &[7; 1000]));
        let checkpoint = Checkpoint::open(&folder.0).unwrap();
        let mut out = vec![0; 1000];
        checkpoint.read_into("w", 0, &mut out).unwrap();
        let file = fs::File::options().write(true).open(folder.0.join("model.safetensors")).unwrap();
        match new_len {
            Some(len) => file.set_len(len).unwrap(),
            None => file.set_modified(std::time::SystemTime::now() + Duration::from_secs(1)).unwrap(),
        }
        let error = checkpoint.read_into("w", 0, &mut out).unwrap_err();
        assert!(
            matches!(error, CpuError::Checkpoint { reason: CheckpointReason::ChangedDuringLoad, .. }),
            "{error}"
        );
    }
}
