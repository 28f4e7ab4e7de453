"""The configuration of the starter model and a compact twin of transformers' Muse Glimmer text decoder to train it.

The twin has the same parameter names and the same function; it is faster because window layers attend in blocks.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import MuseGlimmerConfig

NUM_LAYERS = 7
HIDDEN_SIZE = 192
WINDOW = 64
ROPE_THETA = 10000.0


def make_config(ids: dict[str, int]) -> MuseGlimmerConfig:
    """Build the configuration; `ids` maps bos, eos, eot, pad, image and video to token ids."""
    full = [(NUM_LAYERS - 1 - i) % 4 == 0 for i in range(NUM_LAYERS)]
    text = {
        "vocab_size": 2048,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 512,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_activation": "silu",
        "max_position_embeddings": 1024,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "post_norm_eps": 1e-8,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "layer_rope_theta": [0.0 if is_full else ROPE_THETA for is_full in full],
        "layer_types": ["full_attention" if is_full else "sliding_attention" for is_full in full],
        "sliding_window": WINDOW,
        "final_logit_softcapping": 20.0,
        "qk_scale_factor": 3.87,
        "output_multiplier": (HIDDEN_SIZE / 256) ** -0.5,
        "bos_token_id": ids["bos"],
        "eos_token_id": [ids["eos"], ids["eot"]],
        "pad_token_id": ids["pad"],
    }
    vision = {
        "patch_size": 14,
        "pos_emb_height": 8,
        "pos_emb_width": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "hidden_size": 48,
        "intermediate_size": 96,
        "merge_size": 2,
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0},
    }
    return MuseGlimmerConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["image"],
        video_token_id=ids["video"],
        out_hidden_size=4 * 48,
        projector_hidden_size=96,
        tie_word_embeddings=False,
    )


def rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise the last axis to unit mean square, in f32."""
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


class CentredNorm(nn.Module):
    """rms(x) * (1 + w)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis."""
        return rms(x, self.eps) * (1.0 + self.weight)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply half-split rotary embedding; x is [B, H, T, D], cos and sin [T, D/2]."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def window_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> torch.Tensor:
    """Attend to `window` keys, the current one included. Shapes [B, H, T, D], T a multiple of `window`."""
    b, h, t, d = q.shape
    blocks = t // window

    def pairs(x: torch.Tensor) -> torch.Tensor:
        x = x.reshape(b, h, blocks, window, d)
        before = F.pad(x, (0, 0, 0, 0, 1, 0))[:, :, :-1]
        return torch.cat((before, x), 3)

    row = torch.arange(window)[:, None]
    column = torch.arange(2 * window)[None, :]
    mask = (column > row) & (column <= row + window)  # [W, 2W]
    inside = torch.arange(blocks)[:, None, None] * window + column - window >= 0
    scores = q.reshape(b, h, blocks, window, d) @ pairs(k).transpose(-1, -2) * d**-0.5
    weights = scores.float().masked_fill(~(mask & inside), -1e30).softmax(-1).to(v.dtype)
    return (weights @ pairs(v)).reshape(b, h, t, d)


class Attention(nn.Module):
    """Gated grouped-query attention; a full layer has no rotary embedding, a window layer has."""

    def __init__(self, config: MuseGlimmerConfig, layer: int) -> None:
        super().__init__()
        c = config.text_config
        self.heads, self.kv_heads, self.head_dim = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.window = c.sliding_window if c.layer_types[layer] == "sliding_attention" else None
        self.rope = c.layer_rope_theta[layer] != 0
        self.q_scale, self.eps = c.qk_scale_factor, c.rms_norm_eps
        self.q_proj = nn.Linear(c.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.gate_proj = nn.Linear(c.hidden_size, self.heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, c.hidden_size, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Mix x, the normed layer input [B, T, hidden], over time."""
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = rms(q, self.eps) * self.q_scale, rms(k, self.eps)
        if self.rope:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        q, k = q.to(v.dtype), k.to(v.dtype)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        if self.window is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            out = window_attention(q, k, v, self.window)
        out = out.transpose(1, 2).reshape(b, t, -1)
        return self.o_proj(out * torch.sigmoid(self.gate_proj(x)))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform each row of x."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and SwiGLU, each between two centred norms."""

    def __init__(self, config: MuseGlimmerConfig, layer: int) -> None:
        super().__init__()
        c = config.text_config
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(c.hidden_size, c.intermediate_size)
        self.input_layernorm = CentredNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = CentredNorm(c.hidden_size, c.post_norm_eps)
        self.pre_feedforward_layernorm = CentredNorm(c.hidden_size, c.rms_norm_eps)
        self.post_feedforward_layernorm = CentredNorm(c.hidden_size, c.post_norm_eps)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Return the residual stream after this layer."""
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class Decoder(nn.Module):
    """The text decoder with its head. Parameter names are those of `model.language_model` in transformers."""

    def __init__(self, config: MuseGlimmerConfig) -> None:
        super().__init__()
        c = config.text_config
        self.config = c
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList([Layer(config, i) for i in range(c.num_hidden_layers)])
        self.norm = nn.Module()
        self.norm.weight = nn.Parameter(torch.ones(c.hidden_size))
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.2 if "embed" in name else weight.shape[1] ** -0.5 * 0.7)
        nn.init.normal_(self.lm_head.weight, std=0.02)
        for layer in self.layers:
            layer.post_attention_layernorm.weight.data.fill_(-0.6)
            layer.post_feedforward_layernorm.weight.data.fill_(-0.6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return hidden states [B, T, hidden] after the final norm."""
        c = self.config
        half = c.head_dim // 2
        frequencies = ROPE_THETA ** (-torch.arange(half, dtype=torch.float32) / half)
        angles = torch.arange(ids.shape[1], dtype=torch.float32)[:, None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        x = rms(self.embed_tokens(ids), c.rms_norm_eps)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return rms(x, c.rms_norm_eps) * self.norm.weight

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return f32 logits of any rows of hidden states."""
        c = self.config
        z = self.lm_head(hidden).float() * c.output_multiplier
        return c.final_logit_softcapping * torch.tanh(z / c.final_logit_softcapping)

    def loss(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy over the targets that are not -100."""
        kept = targets.reshape(-1) != -100
        hidden = self(ids).flatten(0, 1)[kept]
        return F.cross_entropy(self.logits(hidden), targets.reshape(-1)[kept])


def to_transformers_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the twin's parameters to those of MuseGlimmerForConditionalGeneration."""
    return {k if k.startswith("lm_head") else f"model.language_model.{k}": v for k, v in state.items()}
