"""`ModelConfig`: a Hugging Face `config.json` with every key accounted for.

Each key is read, listed as harmless, or an error: a key the family defines at a value that pyrite does not implement is
a `ConfigError`, a key that nobody knows is warned about once (`strict=True` raises).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from pyrite.errors import ConfigError
from pyrite.models.fields import Fields, report_unknown, shorten
from pyrite.models.program import KvGroup, RopeTable
from pyrite.models.registry import family_of, supported_architectures
from pyrite.models.rope import MAX_POSITIONS, read_rope
from pyrite.models.spec import FIXED_KEYS, HARMLESS_KEYS, FamilySpec

log = logging.getLogger("pyrite")

_ACTIVATIONS = {"silu": "silu", "swish": "silu"}
MAX_VOCAB = 1 << 24
MAX_WIDTH = 1 << 20
MAX_LAYERS = 2048
MAX_HEADS = 4096


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The numbers of one model, all checked.

    Attributes:
        layer_windows: per layer, how many last positions it sees (its own included); None sees all.
        layer_ropes: per layer, whether queries and keys are rotated.
        q_scale: factor on normed queries, on top of 1 / sqrt(head_dim).
        logit_soft_cap: c of `c * tanh(x / c)`; None is no cap.
        eos_token_ids: end-of-text ids that lie inside the vocabulary; `generation_config.json` goes before them.
        dtype: the checkpoint's, as the config says it; the tensors decide.
    """

    architecture: str
    family: FamilySpec
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeTable
    layer_windows: tuple[int | None, ...]
    layer_ropes: tuple[bool, ...]
    activation: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    post_norm_eps: float = 0.0
    q_scale: float = 1.0
    logit_multiplier: float = 1.0
    logit_soft_cap: float | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: str | None = None

    @property
    def kv_groups(self) -> tuple[KvGroup, ...]:
        """Layers by window, in the order in which windows first appear."""
        windows = tuple(dict.fromkeys(self.layer_windows))
        return tuple(
            KvGroup(window, self.layer_windows.count(window), self.num_kv_heads, self.head_dim) for window in windows
        )

    @property
    def layer_slots(self) -> tuple[tuple[int, int], ...]:
        """Per layer: (KV group, index inside the group)."""
        groups = {window: group for group, window in enumerate(dict.fromkeys(self.layer_windows))}
        counts = [0] * len(groups)
        slots = []
        for window in self.layer_windows:
            group = groups[window]
            slots.append((group, counts[group]))
            counts[group] += 1
        return tuple(slots)

    @classmethod
    def from_hf(cls, data: Mapping[str, object], *, strict: bool = False) -> ModelConfig:
        """Read the parsed `config.json` of a model folder.

        Raises:
            ConfigError: unknown architecture, a value missing, out of range, contradictory or not implemented; with
                `strict` also an unknown key.
        """
        outer = Fields(data)
        architecture = _architecture(outer)
        family = family_of(architecture)
        if outer.get("auto_map", None) is not None:
            log.warning("auto_map is ignored: pyrite runs no code from a model folder")
        _check_model_type(outer, family)
        text = outer
        if family.text_key is not None:
            text = Fields(outer.get(family.text_key), family.text_key + ".")
            outer.fixed(FIXED_KEYS)
        text.fixed({**FIXED_KEYS, **family.fixed_keys})
        values = _read_sizes(text, family)
        rope, theta, unknown = read_rope(
            text, head_dim=values["head_dim"], max_positions=values["max_position_embeddings"]
        )
        config = cls(
            architecture=architecture,
            family=family,
            rope=rope,
            layer_windows=_layer_windows(text, family, values["num_layers"]),
            layer_ropes=_layer_ropes(text, family, values["num_layers"], theta),
            tie_word_embeddings=_tied(outer, text, family),
            eos_token_ids=_eos_token_ids(outer, text, values["vocab_size"]),
            dtype=_dtype(outer, text),
            **values,
        )
        unknown += text.unknown(HARMLESS_KEYS | family.harmless_keys)
        if text is not outer:
            unknown += outer.unknown(HARMLESS_KEYS | family.outer_harmless_keys)
        report_unknown(unknown, strict=strict)
        return config


def _architecture(outer: Fields) -> str:
    names = outer.get("architectures", None)
    if not isinstance(names, list | tuple) or len(names) != 1 or not isinstance(names[0], str):
        expected = "a list with one of " + ", ".join(supported_architectures())
        raise ConfigError("missing or malformed", got=shorten(names), expected=expected, field="architectures")
    return names[0]


def _check_model_type(outer: Fields, family: FamilySpec) -> None:
    model_type = outer.get("model_type", None)
    if model_type is not None and family.model_types and model_type not in family.model_types:
        expected = " or ".join(map(repr, family.model_types))
        raise outer.error("model_type", "contradicts the architecture", expected=expected)


def _read_sizes(text: Fields, family: FamilySpec) -> dict:
    """The plain fields of `ModelConfig` that come from one key each, checked alone and against each other."""

    def integer(field: str, high: int) -> int | None:
        key = family.keys[field]
        return text.integer(key.name, 1, high, key.default)

    def number(field: str, low: float, high: float) -> float | None:
        key = family.keys[field]
        return text.number(key.name, low, high, key.default)

    values: dict = {
        "vocab_size": integer("vocab_size", MAX_VOCAB),
        "hidden_size": integer("hidden_size", MAX_WIDTH),
        "intermediate_size": integer("intermediate_size", MAX_WIDTH),
        "num_layers": integer("num_layers", MAX_LAYERS),
        "num_heads": integer("num_heads", MAX_HEADS),
        "num_kv_heads": integer("num_kv_heads", MAX_HEADS),
        "head_dim": integer("head_dim", 1024),
        "max_position_embeddings": integer("max_position_embeddings", MAX_POSITIONS),
        "rms_norm_eps": number("rms_norm_eps", 0.0, 1.0),
    }
    for field, low, high in (
        ("post_norm_eps", 0.0, 1.0),
        ("q_scale", 1e-6, 1e6),
        ("logit_multiplier", 1e-6, 1e6),
        ("logit_soft_cap", 1e-3, 1e6),
    ):
        if field in family.keys:
            values[field] = number(field, low, high)
    for field in ("attention_bias", "mlp_bias"):
        if field in family.keys:
            values[field] = text.boolean(family.keys[field].name, family.keys[field].default)
    key = family.keys["activation"]
    activation = text.get(key.name, key.default)
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise text.error(key.name, "activation is not implemented", expected="'silu'")
    values["activation"] = _ACTIVATIONS[activation]
    _relate_heads(text, family, values)
    return values


def _relate_heads(text: Fields, family: FamilySpec, values: dict) -> None:
    """Fill the head sizes that a config may leave out, and check that they fit together."""
    keys, heads = family.keys, values["num_heads"]
    if values["head_dim"] is None:
        if values["hidden_size"] % heads:
            raise text.error(keys["num_heads"].name, "does not divide hidden_size and head_dim is absent")
        values["head_dim"] = values["hidden_size"] // heads
    if values["head_dim"] % 2 or values["head_dim"] > 1024:
        expected = "an even number up to 1024"
        raise ConfigError(
            "bad head size", got=values["head_dim"], expected=expected, field=text.where + keys["head_dim"].name
        )
    if values["num_kv_heads"] is None:
        values["num_kv_heads"] = heads
    if heads % values["num_kv_heads"]:
        expected = f"a divisor of {keys['num_heads'].name} = {heads}"
        raise text.error(keys["num_kv_heads"].name, "heads cannot be shared evenly", expected=expected)
    if heads * values["head_dim"] > MAX_WIDTH:
        raise text.error(keys["num_heads"].name, "attention is too wide", expected=f"at most {MAX_WIDTH} in all")


def _is_full(family: FamilySpec, layer: int, num_layers: int) -> bool:
    return family.full_every is not None and (num_layers - 1 - layer) % family.full_every == 0


def _layer_windows(text: Fields, family: FamilySpec, num_layers: int) -> tuple[int | None, ...]:
    if family.windows == "none":
        return (None,) * num_layers
    keys = family.keys
    window_key = keys["sliding_window"]
    switched_off = family.windows == "switched" and not text.boolean(
        keys["use_sliding_window"].name, keys["use_sliding_window"].default
    )
    window = text.integer(window_key.name, 1, MAX_POSITIONS, window_key.default)
    first = 0
    if family.windows == "switched":
        key = keys["max_window_layers"]
        first = text.integer(key.name, 0, MAX_LAYERS, key.default)
        window = None if switched_off else window
    types = text.array(keys["layer_types"].name, num_layers, keys["layer_types"].default)
    if types is None:
        if family.windows == "switched":
            full = [window is None or layer < first for layer in range(num_layers)]
        else:
            full = [_is_full(family, layer, num_layers) for layer in range(num_layers)]
        types = ["full_attention" if is_full else "sliding_attention" for is_full in full]
    windows: list[int | None] = []
    for layer, kind in enumerate(types):
        if not isinstance(kind, str) or kind not in ("full_attention", "sliding_attention"):
            raise ConfigError(
                "unknown layer type",
                got=shorten(kind),
                expected="'full_attention' or 'sliding_attention'",
                field=f"{text.where}{keys['layer_types'].name}[{layer}]",
            )
        if kind == "sliding_attention" and window is None:
            raise text.error(window_key.name, f"layer {layer} slides and there is no window", expected="an integer")
        windows.append(window if kind == "sliding_attention" else None)
    return tuple(windows)


def _layer_ropes(text: Fields, family: FamilySpec, num_layers: int, theta: float) -> tuple[bool, ...]:
    """A per-layer theta is a switch: 0 is no rope; any other value must be the model's."""
    if not family.nope_layers:
        return (True,) * num_layers
    key = family.keys["layer_rope_theta"]
    thetas = text.array(key.name, num_layers, key.default)
    if thetas is None:
        return tuple(not _is_full(family, layer, num_layers) for layer in range(num_layers))
    for layer, value in enumerate(thetas):
        if isinstance(value, bool) or not isinstance(value, int | float) or value not in (0, theta):
            raise ConfigError(
                "contradicts the model's rope_theta",
                got=shorten(value),
                expected=f"0 or {theta:g}",
                field=f"{text.where}{key.name}[{layer}]",
            )
    return tuple(value != 0 for value in thetas)


def _tied(outer: Fields, text: Fields, family: FamilySpec) -> bool:
    """The outermost config decides; a nested one that ties where the outer one does not is a contradiction."""
    key = family.keys["tie_word_embeddings"]
    tied = outer.boolean(key.name, key.default)
    if text is not outer and text.boolean(key.name, False) and not tied:
        raise text.error(key.name, f"contradicts {key.name} of the outer config", expected="false")
    return tied


def _eos_token_ids(outer: Fields, text: Fields, vocab_size: int) -> tuple[int, ...]:
    for fields in (outer, text):
        value = fields.data.get("eos_token_id")
        if value is not None:
            ids = value if isinstance(value, list | tuple) else [value]
            if len(ids) > 1024 or any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
                raise fields.error("eos_token_id", "not token ids", expected="an id or a list of ids")
            return tuple(i for i in ids if i < vocab_size)
    return ()


def _dtype(outer: Fields, text: Fields) -> str | None:
    for fields in (text, outer):
        for key in ("dtype", "torch_dtype"):
            value = fields.data.get(key)
            if isinstance(value, str):
                return value[:40]
    return None
