//! Whole steps: one answer whatever the level, the threads, the pieces of a prompt and its neighbours.

mod common;

use common::*;
use pyrite_cpu::error::CpuError;
use pyrite_cpu::executor::ExecutorConfig;
use pyrite_cpu::isa::Isa;
use pyrite_cpu::ops::attention::KvType;
use pyrite_cpu::tensor::DType;
use pyrite_cpu::weights::Interrupted;

#[test]
fn levels_below_bf16_have_the_same_bits() {
    for (weights, kv) in [
        (DType::F32, DType::F32.into()),
        (DType::F16, DType::F16.into()),
        (DType::Bf16, DType::Bf16.into()),
        (DType::F32, KvType::Int8),
        (DType::Bf16, KvType::Int16),
    ] {
        let (_folder, checkpoint) = checkpoint(weights);
        let prompt = tokens(1, 100);
        let run = |isa| {
            let config = ExecutorConfig { isa, kv_dtype: kv, ..config() };
            Driver::new(&checkpoint, &config).run(&[(0, &prompt)])
        };
        let expected = run(Isa::Scalar);
        assert!(expected.iter().all(|logit| logit.is_finite()));
        for isa in [Isa::Avx2, Isa::Avx512, Isa::Avx512Vnni].into_iter().filter(|isa| isa.is_supported()) {
            assert_same_bits(&run(isa), &expected, &format!("{isa}, {weights:?}, {} KV", kv.name()));
        }
    }
}

#[test]
fn threads_pieces_blocks_and_neighbours_change_no_bit() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        let (_folder, checkpoint) = checkpoint(DType::Bf16);
        let prompt = tokens(2, 100);
        let others = [tokens(3, 40), tokens(4, 3)];
        let config = ExecutorConfig { isa, kv_dtype: DType::F16.into(), ..config() };
        let expected = Driver::new(&checkpoint, &config).run(&[(0, &prompt)]);
        for (num_threads, block_size, chunk) in [(1, 16, 100), (3, 16, 7), (2, 32, 1), (2, 32, 33)] {
            let config = ExecutorConfig { num_threads, block_size, ..config.clone() };
            let mut driver = Driver::new(&checkpoint, &config);
            let mut got = Vec::new();
            for (step, piece) in prompt.chunks(chunk).enumerate() {
                // Neighbours come and go, before and after it in the batch.
                let mut work = vec![(0, piece)];
                if chunk < 100 && step % 2 == 0 {
                    let other = &others[step % 4 / 2];
                    work.insert(step % 4 / 2, (1 + step % 4 / 2, &other[..1 + step % 3]));
                }
                let logits = driver.run(&work);
                let before: usize =
                    work.iter().take_while(|(sequence, _)| *sequence != 0).map(|(_, t)| t.len()).sum();
                got.extend_from_slice(&logits[before * VOCAB..][..piece.len() * VOCAB]);
            }
            let what = format!("{isa}, {num_threads} threads, blocks of {block_size}, pieces of {chunk}");
            assert_same_bits(&got, &expected, &what);
        }
    }
}

#[test]
fn only_the_wanted_rows_are_written_and_copied_blocks_continue_a_sequence() {
    let (_folder, checkpoint) = checkpoint(DType::F32);
    let prompt = tokens(5, 60);
    let expected = Driver::new(&checkpoint, &config()).run(&[(0, &prompt)]);
    let mut driver = Driver::new(&checkpoint, &config());
    let mut step = driver.step(&[(0, &prompt[..50])]);
    step.logit_rows = vec![7, 49];
    let mut logits = vec![f32::NAN; 3 * VOCAB];
    step.run(&mut driver.executor, &mut logits).unwrap();
    assert_same_bits(&logits[..VOCAB], &expected[7 * VOCAB..8 * VOCAB], "row 7");
    assert_same_bits(&logits[VOCAB..2 * VOCAB], &expected[49 * VOCAB..50 * VOCAB], "row 49");
    assert!(logits[2 * VOCAB..].iter().all(|logit| logit.is_nan()));
    // The last block of 50 tokens moves to another place in both groups.
    let mut step = driver.step(&[(0, &prompt[50..])]);
    for group in 0..2 {
        let (from, to) = (step.tables[group][3], 30);
        step.copies[group] = vec![(from, to)];
        step.tables[group][3] = to;
        let shift = (to - from) * 16;
        step.slots[group].iter_mut().for_each(|slot| *slot += shift);
    }
    let mut logits = vec![f32::NAN; 10 * VOCAB];
    step.run(&mut driver.executor, &mut logits).unwrap();
    assert_same_bits(&logits, &expected[50 * VOCAB..], "after the copy");
    // No rows at all: a chunk that samples nothing.
    let mut driver = Driver::new(&checkpoint, &config());
    let mut step = driver.step(&[(0, &prompt[..50])]);
    step.logit_rows.clear();
    step.run(&mut driver.executor, &mut []).unwrap();
    assert_same_bits(&driver.run(&[(0, &prompt[50..])]), &expected[50 * VOCAB..], "after no rows");
}

#[test]
fn a_bad_step_is_refused_whole_and_the_next_good_one_runs() {
    let (_folder, checkpoint) = checkpoint(DType::F32);
    let prompt = tokens(6, 40);
    let mut driver = Driver::new(&checkpoint, &config());
    let good = driver.step(&[(0, &prompt), (1, &prompt[..3])]);
    let mut logits = vec![0.0; 43 * VOCAB];
    let mut expected = logits.clone();
    good.run(&mut driver.executor, &mut expected).unwrap();
    type Spoil = fn(&mut Step);
    let faults: [(&str, Spoil); 28] = [
        ("token_ids", |s| s.token_ids[3] = -1),
        ("token_ids", |s| s.token_ids[42] = VOCAB as i32),
        ("token_ids", |s| s.token_ids.clear()),
        ("token_ids", |s| s.token_ids.resize(129, 0)),
        ("positions", |s| s.positions[0] = 1),
        ("positions", |s| s.positions.truncate(42)),
        ("cu_seqlens_q", |s| s.cu_seqlens_q[1] = 0),
        ("cu_seqlens_q", |s| s.cu_seqlens_q[0] = -1),
        ("cu_seqlens_q", |s| s.cu_seqlens_q[2] = 44),
        ("cu_seqlens_q", |s| s.cu_seqlens_q.truncate(2)),
        ("seq_lens", |s| s.seq_lens[0] = 39),
        ("seq_lens", |s| s.seq_lens[0] = i32::MAX),
        ("seq_lens", |s| s.seq_lens[1] = -3),
        ("seq_lens", |s| s.seq_lens.clear()),
        ("positions", |s| s.seq_lens[1] = 4),
        ("logit_rows", |s| s.logit_rows[0] = 43),
        ("logit_rows", |s| s.logit_rows[0] = -1),
        ("logit_rows", |s| s.logit_rows.resize(129, 0)),
        ("logits", |s| s.logit_rows.push(0)),
        ("slot_mapping", |s| s.slots[1][0] = 41 * 16),
        ("slot_mapping", |s| s.slots[1][0] = -2),
        ("slot_mapping", |s| s.slots[0][5] = s.slots[0][4]),
        ("slot_mapping", |s| s.slots[0].truncate(42)),
        ("block_tables", |s| s.tables[1][0] = -1),
        ("block_tables", |s| s.tables[0][19] = 37),
        ("block_tables", |s| s.max_blocks = 2),
        ("block_copies", |s| s.copies[0] = vec![(0, 37)]),
        ("block_copies", |s| s.copies[1] = vec![(30, 31), (31, 32)]),
    ];
    for (expected_field, spoil) in faults {
        let mut bad = good.clone();
        spoil(&mut bad);
        match bad.run(&mut driver.executor, &mut logits) {
            Err(CpuError::Step { field, .. }) => assert_eq!(field, expected_field),
            other => panic!("{expected_field}: {other:?}"),
        }
        assert!(logits.iter().all(|logit| *logit == 0.0), "{expected_field}: something was written");
    }
    good.run(&mut driver.executor, &mut logits).unwrap();
    assert_same_bits(&logits, &expected, "after all faults");
}

#[test]
fn weights_of_the_wrong_kind_are_refused_by_name() {
    type Spoil = fn(&mut Tensors);
    let faults: [(&str, &str, Spoil); 6] = [
        ("1.o", "missing_tensor", |t| t.retain(|name, _| name != "1.o")),
        ("1.norm_k", "missing_tensor", |t| t.retain(|name, _| name != "1.norm_k")),
        ("embed", "wrong_shape", |t| t.get_mut("embed").unwrap().1.reverse()),
        ("0.v", "wrong_shape", |t| t.get_mut("0.v").unwrap().1 = vec![KV_HEADS * HEAD_DIM * HIDDEN]),
        ("0.g", "wrong_shape", |t| {
            t.insert("0.g".into(), (DType::F32, vec![3, HIDDEN], vec![0.0; 3 * HIDDEN]));
        }),
        ("0.q", "wrong_shape", |t| {
            t.insert("0.q".into(), (DType::F32, vec![500, HIDDEN], vec![0.0; 500 * HIDDEN]));
        }),
    ];
    for (name, code, spoil) in faults {
        let folder = TempFolder::new();
        let mut tensors = tensors(DType::F32);
        spoil(&mut tensors);
        write_safetensors(&folder, &tensors);
        let checkpoint = pyrite_cpu::checkpoint::Checkpoint::open(&folder.0).unwrap();
        match load(&checkpoint, &config()).map(|_| ()) {
            Err(CpuError::Checkpoint { tensor, reason, .. }) => {
                assert_eq!((tensor.as_deref(), reason.code()), (Some(name), code));
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn converted_weights_equal_a_checkpoint_in_that_type() {
    let (_a, as_f32) = checkpoint(DType::F32);
    let (_b, as_bf16) = checkpoint(DType::Bf16);
    let prompt = tokens(7, 50);
    let converted = ExecutorConfig { weight_dtype: Some(DType::Bf16), ..config() };
    let got = Driver::new(&as_f32, &converted).executor.info();
    let expected = Driver::new(&as_bf16, &config()).executor.info();
    assert_eq!(got, expected);
    // Widening is exact, so the numbers are the same too.
    let widened = ExecutorConfig { weight_dtype: Some(DType::F32), ..config() };
    let got = Driver::new(&as_bf16, &widened).run(&[(0, &prompt)]);
    let expected = Driver::new(&as_bf16, &config()).run(&[(0, &prompt)]);
    assert_same_bits(&got, &expected, "widened");
}

#[test]
fn bad_settings_are_refused() {
    let (_folder, checkpoint) = checkpoint(DType::F32);
    let good = config();
    for (expected, bad) in [
        ("max_tokens", ExecutorConfig { max_tokens: 0, ..good.clone() }),
        ("max_rows", ExecutorConfig { max_rows: usize::MAX, ..good.clone() }),
        ("max_seqs", ExecutorConfig { max_seqs: 0, ..good.clone() }),
        ("block_size", ExecutorConfig { block_size: 0, ..good.clone() }),
        ("num_threads", ExecutorConfig { num_threads: 0, ..good.clone() }),
        ("num_blocks", ExecutorConfig { num_blocks: vec![4], ..good.clone() }),
        ("num_blocks", ExecutorConfig { num_blocks: vec![4, 0], ..good.clone() }),
        ("num_blocks", ExecutorConfig { num_blocks: vec![4, usize::MAX], ..good.clone() }),
    ] {
        match load(&checkpoint, &bad).map(|_| ()) {
            Err(CpuError::Config { field, .. }) => assert_eq!(field, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn what_does_not_fit_in_memory_is_refused_before_anything_is_loaded() {
    let (_folder, checkpoint) = checkpoint(DType::F32);
    let huge = ExecutorConfig { num_blocks: vec![1 << 25, 1 << 25], ..config() };
    match load(&checkpoint, &huge).map(|_| ()) {
        Err(CpuError::DoesNotFit { needed_bytes, available_bytes }) => {
            assert!(needed_bytes > available_bytes && needed_bytes > 3 << 37);
        }
        other => panic!("{other:?}"),
    }
    load(&checkpoint, &config()).unwrap();
}

#[test]
fn progress_reaches_the_total_and_can_stop_the_load() {
    let (_folder, checkpoint) = checkpoint(DType::F32);
    let mut calls = Vec::new();
    let load = |progress: &mut pyrite_cpu::weights::Progress<'_>| {
        pyrite_cpu::executor::Executor::load(program(), &checkpoint, config(), progress).map(|_| ())
    };
    load(&mut |done, total| {
        calls.push((done, total));
        Ok(())
    })
    .unwrap();
    assert_eq!(calls[0], (0, checkpoint.num_bytes()));
    assert_eq!(calls[calls.len() - 1], (checkpoint.num_bytes(), checkpoint.num_bytes()));
    assert!(matches!(load(&mut |_, _| Err(Interrupted)), Err(CpuError::Interrupted)));
}

#[test]
fn a_profile_counts_steps_bytes_and_operations_and_changes_no_bit() {
    let (_folder, checkpoint) = checkpoint(DType::Bf16);
    let prompt = tokens(6, 40);
    let expected = Driver::new(&checkpoint, &config()).run(&[(0, &prompt)]);
    let mut driver = Driver::new(&checkpoint, &config());
    assert!(driver.executor.end_profile().is_empty());
    driver.executor.start_profile();
    assert_same_bits(&driver.run(&[(0, &prompt)]), &expected, "with a profile");
    let ops = driver.executor.end_profile();
    assert!(driver.executor.end_profile().is_empty());
    let head = ops.iter().find(|op| op.label == "head").unwrap();
    assert_eq!((head.calls, head.operations), (1, 2 * 40 * (HIDDEN * VOCAB) as u64));
    assert!(head.bytes >= (2 * HIDDEN * VOCAB + 4 * 40 * (HIDDEN + VOCAB)) as u64);
    let labels: Vec<&str> = ops.iter().map(|op| op.label.as_str()).collect();
    assert!(labels.iter().all(|label| !label.starts_with("layers.")), "{labels:?}");
    assert!(ops.iter().all(|op| op.seconds >= 0.0 && op.calls > 0), "{ops:?}");
    let attention = ops.iter().find(|op| op.label == "attention").unwrap();
    assert!(attention.operations > 0 && attention.bytes > 0);
}
