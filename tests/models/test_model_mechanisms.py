"""Each mechanism of each family is felt: switched off or bent, some logprob moves by more than 0.05."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from oracle import log_softmax, oracle_logprobs, prompt
from pyrite.models import ModelConfig, Norm, load_config, record
from pyrite.models.program import RopeTable
from runners import run_reference
from tiny_models import WINDOW, tiny
from variants import ROPE_KINDS

FELT = 0.05
Bend = Callable[[ModelConfig], ModelConfig]


def family(**flags) -> Bend:
    """Change flags of the family."""
    return lambda config: replace(config, family=replace(config.family, **flags))


def scaled(**factors) -> Bend:
    """Multiply numbers of the config."""
    return lambda config: replace(config, **{name: getattr(config, name) * f for name, f in factors.items()})


def set_to(**values) -> Bend:
    """Set numbers of the config."""
    return lambda config: replace(config, **values)


def windows(change: Callable[[int | None], int | None]) -> Bend:
    return lambda config: replace(config, layer_windows=tuple(change(w) for w in config.layer_windows))


def plain_rope(theta: float) -> Bend:
    return lambda c: replace(c, rope=RopeTable(tuple(theta ** (-2 * a / c.head_dim) for a in range(c.head_dim // 2))))


def without(name: str) -> Bend:
    """The family's norm `name` without its weight."""
    return family(**{name: Norm(None)})


def plain(name: str) -> Bend:
    """The family's norm `name` with the stored weight as it is."""
    return lambda c: replace(c, family=replace(c.family, **{name: replace(getattr(c.family, name), weight_offset=0.0)}))


SHARED: dict[str, Bend] = {
    "no rope": lambda c: replace(c, layer_ropes=(False,) * c.num_layers),
    "other theta": plain_rope(300.0),
    "adjacent-pair frequencies": lambda c: replace(c, rope=RopeTable(c.rope.inv_freq[::-1])),
    "no attention norm weight": without("attention_norm"),
    "no mlp norm weight": without("mlp_norm"),
    "no final norm weight": without("final_norm"),
    "norm eps": scaled(rms_norm_eps=1e-3),
}
LLAMA: dict[str, Bend] = {
    **SHARED,
    "no attention bias": set_to(attention_bias=False),
    "no mlp bias": set_to(mlp_bias=False),
    "centred norms": family(attention_norm=Norm("input_layernorm.weight", weight_offset=1.0)),
    "a window": windows(lambda w: WINDOW),
}
QWEN3: dict[str, Bend] = {
    **SHARED,
    "no attention bias": set_to(attention_bias=False),
    "no q norm": family(q_norm=None),
    "no k norm": family(k_norm=None),
    "no q norm weight": without("q_norm"),
    "no k norm weight": without("k_norm"),
    "no window": windows(lambda w: None),
    "window + 1": windows(lambda w: w and w + 1),
    "window - 1": windows(lambda w: w and w - 1),
    "window in the wrong layers": lambda c: replace(c, layer_windows=c.layer_windows[::-1]),
}
MUSE: dict[str, Bend] = {
    **SHARED,
    "no embedding norm": family(embedding_norm=None),
    "no output gate": family(output_gate=None),
    "no post-attention norm": family(post_attention_norm=None),
    "no post-mlp norm": family(post_mlp_norm=None),
    "attention norm not centred": plain("attention_norm"),
    "post-attention norm not centred": plain("post_attention_norm"),
    "mlp norm not centred": plain("mlp_norm"),
    "post-mlp norm not centred": plain("post_mlp_norm"),
    "final norm centred": family(final_norm=Norm("model.language_model.norm.weight", weight_offset=1.0)),
    "post norms with the inner eps": lambda c: replace(c, post_norm_eps=c.rms_norm_eps),
    "no q norm": lambda c: replace(c, q_scale=1.0, family=replace(c.family, q_norm=None)),
    "no k norm": family(k_norm=None),
    "no q scale": set_to(q_scale=1.0),
    "q scale instead of 1 / sqrt(head_dim)": scaled(q_scale=24**0.5),
    "no soft-cap": set_to(logit_soft_cap=None),
    "no logit multiplier": set_to(logit_multiplier=1.0),
    "multiplier after the cap": lambda c: replace(c, logit_soft_cap=c.logit_soft_cap * c.logit_multiplier),
    "no window": windows(lambda w: None),
    "window + 1": windows(lambda w: w and w + 1),
    "window - 1": windows(lambda w: w and w - 1),
    "a window on all layers": windows(lambda w: WINDOW),
    "rope on all layers": lambda c: replace(c, layer_ropes=(True,) * c.num_layers),
    "full layers counted from the front": lambda c: replace(
        c, layer_windows=c.layer_windows[::-1], layer_ropes=c.layer_ropes[::-1]
    ),
    "head tied": set_to(tie_word_embeddings=True),
}
CASES = [(name, case) for name, cases in (("llama", LLAMA), ("qwen3", QWEN3), ("muse_glimmer", MUSE)) for case in cases]
BENDS = {"llama": LLAMA, "qwen3": QWEN3, "muse_glimmer": MUSE}


def moved(folder, bend: Bend) -> float:
    """The largest change of a logprob against transformers."""
    ids = prompt(3 * WINDOW + 9)
    logits = run_reference(record(bend(load_config(folder))), folder, ids, [len(ids)])
    return float(np.abs(log_softmax(logits) - oracle_logprobs(folder, ids)).max())


@pytest.mark.parametrize(("name", "case"), CASES)
def test_mechanism_is_felt(name, case):
    assert moved(tiny(name), BENDS[name][case]) > FELT


@pytest.mark.parametrize("name", BENDS)
def test_nothing_moves_without_a_bend(name):
    assert moved(tiny(name), lambda config: config) < 1e-3


@pytest.mark.parametrize("kind", [kind for kind in ROPE_KINDS if kind != "default"])
def test_rope_scaling_is_felt(kind):
    folder = tiny("llama", rope_parameters=ROPE_KINDS[kind])
    assert moved(folder, plain_rope(10000.0)) > FELT


@pytest.mark.parametrize("kind", ["yarn", "yarn_attention_factor", "yarn_mscale"])
def test_yarn_magnitude_is_felt(kind):
    folder = tiny("llama", rope_parameters=ROPE_KINDS[kind])
    assert moved(folder, lambda c: replace(c, rope=replace(c.rope, scale=1.0))) > FELT
