"""The one generic decoder: reads a `ModelConfig` and its family's flags, and records ops."""

from __future__ import annotations

from pyrite.errors import ConfigError
from pyrite.models.config import ModelConfig
from pyrite.models.program import Program, View
from pyrite.models.recorder import Recorder
from pyrite.models.spec import Norm


def record_unfused(config: ModelConfig) -> Program:
    """Record the model op by op, without fusion and without scratch slots.

    Raises:
        ConfigError: a query factor where the family norms no queries.
    """
    if config.q_scale != 1.0 and config.family.q_norm is None:
        raise ConfigError("a query factor needs a query norm", got=config.q_scale, field="q_scale")
    rec = Recorder((config.rope,) if any(config.layer_ropes) else (), config.kv_groups)
    family = config.family
    table = rec.matrix("embedding", family.embedding, config.vocab_size, config.hidden_size)
    x = rec.embed("x", table)
    if family.embedding_norm is not None:
        x = _norm(rec, config, "x", x, family.embedding_norm, "", "embedding_norm")
    for layer, slot in enumerate(config.layer_slots):
        _attention_block(rec, config, layer, slot, x)
        _mlp_block(rec, config, layer, x)
    x = rec.select_rows("rows", x)
    x = _norm(rec, config, "normed_rows", x, family.final_norm, "", "final_norm")
    if not config.tie_word_embeddings:
        table = rec.matrix("head", family.head, config.vocab_size, config.hidden_size)
    logits = rec.linear("logits", x, table)
    if config.logit_multiplier != 1.0 or config.logit_soft_cap is not None:
        rec.logits(logits, config.logit_multiplier, config.logit_soft_cap)
    return rec.finish(logits)


def _attention_block(rec: Recorder, config: ModelConfig, layer: int, slot: tuple[int, int], x: View) -> None:
    """`x += post_norm(o(gate * attention(norm(x))))`."""
    family, head_dim = config.family, config.head_dim
    h = _layer_norm(rec, config, layer, "h", x, family.attention_norm, "attention_norm")
    q_width, kv_width = config.num_heads * head_dim, config.num_kv_heads * head_dim
    q = _linear(rec, config, layer, "q", h, family.q, q_width, config.attention_bias)
    k = _linear(rec, config, layer, "k", h, family.k, kv_width, config.attention_bias)
    v = _linear(rec, config, layer, "v", h, family.v, kv_width, config.attention_bias)
    gate = None
    if family.output_gate is not None:
        gate = _linear(rec, config, layer, "output_gate", h, family.output_gate, q_width, False)
    if family.q_norm is not None:
        _head_norm(rec, config, layer, q, family.q_norm, "q_norm", config.q_scale)
    if family.k_norm is not None:
        _head_norm(rec, config, layer, k, family.k_norm, "k_norm", 1.0)
    if config.layer_ropes[layer]:
        rec.rope(q, head_dim, 0)
        rec.rope(k, head_dim, 0)
    rec.kv_store(k, v, *slot)
    a = rec.attention("attended", q, *slot, head_dim**-0.5)
    if gate is not None:
        rec.gate(a, gate)
    y = _linear(rec, config, layer, "o", a, family.o, config.hidden_size, config.attention_bias)
    if family.post_attention_norm is not None:
        y = _layer_norm(rec, config, layer, "normed_branch", y, family.post_attention_norm, "post_attention_norm")
    rec.add(x, y)


def _mlp_block(rec: Recorder, config: ModelConfig, layer: int, x: View) -> None:
    """`x += post_norm(down(silu(gate(norm(x))) * up(norm(x))))`."""
    family, width = config.family, config.intermediate_size
    h = _layer_norm(rec, config, layer, "h", x, family.mlp_norm, "mlp_norm")
    gate = _linear(rec, config, layer, "gate", h, family.gate, width, config.mlp_bias)
    up = _linear(rec, config, layer, "up", h, family.up, width, config.mlp_bias)
    a = rec.glu("activated", gate, up)
    y = _linear(rec, config, layer, "down", a, family.down, config.hidden_size, config.mlp_bias)
    if family.post_mlp_norm is not None:
        y = _layer_norm(rec, config, layer, "normed_branch", y, family.post_mlp_norm, "post_mlp_norm")
    rec.add(x, y)


def _linear(
    rec: Recorder, config: ModelConfig, layer: int, name: str, x: View, tensor: str, width: int, bias: bool
) -> View:
    prefix, name_in_layer = config.family.layer.format(layer=layer), f"layers.{layer}.{name}"
    weight = rec.matrix(name_in_layer, f"{prefix}{tensor}.weight", width, x.width)
    vector = rec.vector(f"{name_in_layer}.bias", f"{prefix}{tensor}.bias", width) if bias else None
    return rec.linear(name, x, weight, vector)


def _layer_norm(rec: Recorder, config: ModelConfig, layer: int, buffer: str, x: View, norm: Norm, name: str) -> View:
    return _norm(rec, config, buffer, x, norm, config.family.layer.format(layer=layer), f"layers.{layer}.{name}")


def _norm(rec: Recorder, config: ModelConfig, buffer: str, x: View, norm: Norm, prefix: str, name: str) -> View:
    weight = None if norm.tensor is None else rec.vector(name, prefix + norm.tensor, x.width)
    return rec.rms_norm(buffer, x, weight, getattr(config, norm.eps), norm.weight_offset)


def _head_norm(rec: Recorder, config: ModelConfig, layer: int, x: View, norm: Norm, name: str, scale: float) -> None:
    prefix, head_dim = config.family.layer.format(layer=layer), config.head_dim
    weight = None if norm.tensor is None else rec.vector(f"layers.{layer}.{name}", prefix + norm.tensor, head_dim)
    rec.head_norm(x, head_dim, weight, getattr(config, norm.eps), norm.weight_offset, scale)
