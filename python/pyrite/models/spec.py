"""What a model family is: explicit flags, the checkpoint's tensor names, and the meaning of every config key.

A family file under `families/` fills one `FamilySpec` and holds nothing else. `decoder.py` reads the flags and the
names, `config.py` the keys. A flag that is not set is off; nothing is implied by anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from pyrite.errors import ConfigError


class Required(Enum):
    """The default of a key that a config must have."""

    REQUIRED = "required"


REQUIRED = Required.REQUIRED


@dataclass(frozen=True, slots=True)
class Norm:
    """One RMS norm.

    Attributes:
        tensor: checkpoint tensor of the weight (inside its layer, for the norms of a layer); None is a scaleless norm.
        weight_offset: added to the stored weight; 1 is the centred kind, `x / rms * (1 + w)`.
        eps: the `ModelConfig` field that holds its epsilon.
    """

    tensor: str | None
    weight_offset: float = 0.0
    eps: Literal["rms_norm_eps", "post_norm_eps"] = "rms_norm_eps"


@dataclass(frozen=True, slots=True)
class Key:
    """A Hugging Face config key and what its absence means. A default of None also allows an explicit null."""

    name: str
    default: object = REQUIRED


COMMON_KEYS: Mapping[str, Key] = {
    "vocab_size": Key("vocab_size"),
    "hidden_size": Key("hidden_size"),
    "intermediate_size": Key("intermediate_size"),
    "num_layers": Key("num_hidden_layers"),
    "num_heads": Key("num_attention_heads"),
    "num_kv_heads": Key("num_key_value_heads", None),
    "head_dim": Key("head_dim", None),
    "max_position_embeddings": Key("max_position_embeddings"),
    "rms_norm_eps": Key("rms_norm_eps", 1e-6),
    "activation": Key("hidden_act", "silu"),
    "tie_word_embeddings": Key("tie_word_embeddings", False),
    "attention_bias": Key("attention_bias", False),
}
"""Meaning of the keys that all families share: `ModelConfig` field to Hugging Face key."""

ROPE_KEYS = ("rope_parameters", "rope_scaling", "rope_theta")
"""Read for every family by `rope.py`, in old and new spelling."""

HARMLESS_KEYS = frozenset(
    """
    architectures model_type transformers_version dtype torch_dtype use_cache initializer_range attention_dropout
    pad_token_id bos_token_id eos_token_id sep_token_id decoder_start_token_id _name_or_path _attn_implementation
    _attn_implementation_autoset attn_implementation name_or_path return_dict output_hidden_states output_attentions
    chunk_size_feed_forward problem_type id2label label2id finetuning_task task_specific_params tokenizer_class prefix
    torchscript use_bfloat16 is_decoder tie_encoder_decoder cross_attention_hidden_size pretraining_tp
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values
    repetition_penalty return_dict_in_generate suppress_tokens temperature tf_legacy_loss top_k top_p typical_p
    """.split()  # noqa: SIM905
)
"""Keys that change no logit: bookkeeping, training, and generation defaults that belong to `generation_config.json`."""

FIXED_KEYS: Mapping[str, tuple[object, ...]] = {
    "quantization_config": (None,),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
    "partial_rotary_factor": (None, 1, 1.0),
    "original_max_position_embeddings": (None,),
}
"""Keys that would change the logits, with the only values that pyrite implements."""

ROTARY_BUFFERS = "*.rotary_emb.inv_freq"
"""Tables that old checkpoints carry; pyrite computes its own."""


@dataclass(frozen=True, slots=True)
class FamilySpec:
    """A model family as data.

    Attributes:
        name: for messages.
        model_types: accepted `model_type` values; empty accepts any.
        text_key: the config key that nests the text model's config; None when the config is flat.

        embedding, head, final_norm: tensor names and the last norm.
        layer: prefix of a layer's tensors, with `{layer}` for its number.
        q, k, v, o, gate, up, down: linear layers inside `layer`, without `.weight` or `.bias`.
        output_gate: linear layer whose sigmoid multiplies the attention's output; reads the normed layer input.
        attention_norm, mlp_norm: norms before attention and MLP.
        post_attention_norm, post_mlp_norm: sandwich norms on a branch before it joins the residual.
        embedding_norm: norm of the embedding rows.
        q_norm, k_norm: norms of each head before rope. `q_norm` is multiplied by `ModelConfig.q_scale`.

        windows: "none"; "switched": `use_sliding_window`, then from layer `max_window_layers` on, as Qwen writes it;
            "pattern": as `full_every` says. An explicit `layer_types` goes before both.
        full_every: layer i is full when (num_layers - 1 - i) is a multiple of it, where `layer_types` is absent.
        nope_layers: whether `layer_rope_theta[i] == 0` switches rope off in layer i (absent: where `full_every` says).

        keys: `ModelConfig` field to config key, for the fields this family has.
        harmless_keys: config keys without effect on logits, beside `HARMLESS_KEYS`.
        fixed_keys: config keys implemented at the listed values only, beside `FIXED_KEYS`.
        outer_harmless_keys: as `harmless_keys`, for the config around `text_key`.
        skippable_tensors: patterns (fnmatch) of checkpoint tensors that a text model does not need.
    """

    name: str
    embedding: str
    head: str
    final_norm: Norm
    layer: str
    attention_norm: Norm
    mlp_norm: Norm
    model_types: tuple[str, ...] = ()
    text_key: str | None = None

    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    output_gate: str | None = None

    post_attention_norm: Norm | None = None
    post_mlp_norm: Norm | None = None
    embedding_norm: Norm | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None

    windows: Literal["none", "switched", "pattern"] = "none"
    full_every: int | None = None
    nope_layers: bool = False

    keys: Mapping[str, Key] = field(default_factory=lambda: COMMON_KEYS)
    harmless_keys: frozenset[str] = frozenset()
    fixed_keys: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    outer_harmless_keys: frozenset[str] = frozenset()
    skippable_tensors: tuple[str, ...] = (ROTARY_BUFFERS,)

    def __post_init__(self) -> None:
        """Check that every flag has the keys it needs.

        Raises:
            ConfigError: one is missing.
        """
        needed = set(COMMON_KEYS)
        needed |= {"sliding_window", "layer_types"} if self.windows != "none" else set()
        needed |= {"use_sliding_window", "max_window_layers"} if self.windows == "switched" else set()
        needed |= {"layer_rope_theta"} if self.nope_layers else set()
        norms = (self.attention_norm, self.post_attention_norm, self.mlp_norm, self.post_mlp_norm, self.final_norm)
        norms += (self.embedding_norm, self.q_norm, self.k_norm)
        needed |= {norm.eps for norm in norms if norm is not None}
        if missing := sorted(needed - self.keys.keys()):
            raise ConfigError(f"family {self.name!r} lacks the meaning of " + ", ".join(missing), field="keys")
