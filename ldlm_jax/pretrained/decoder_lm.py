"""The Llama family of causal language models, frozen: pure functions of a tree of parameters.

Llama 2 and 3, SmolLM, Mistral (sliding windows), Qwen2 and Qwen2.5 (biases), Qwen3 (QK-norm) and
Gemma 3 (norms on both sides, local and global layers) differ in a few switches of one
``DecoderConfig``. they teach (hidden states) and score (logits).

Shape letters: B rows, N tokens, M width, H heads, G key-value heads, K head width, F feed-forward
width, V vocabulary, Y layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldlm_jax.errors import UserError
from ldlm_jax.models.attention import attend, masked_attention, rotate
from ldlm_jax.models.dense import activation_dtype, gather_kernel, matmul
from ldlm_jax.models.kernels.splash import LANES
from ldlm_jax.models.lowering import constrain
from ldlm_jax.models.masks import AttentionMask, block_causal, same_document
from ldlm_jax.models.token_layout import token_layout
from ldlm_jax.pretrained.rope import Rope

# Queries (B, N, H, K), keys and values (B, N, G, K), and the layer's window to what is seen.
Attend = Callable[..., jax.Array]


@dataclass(frozen=True)
class DecoderConfig:
    """Shape and switches of a model. Hashable: a static argument.

    Attributes:
      vocab_size: tokens V.
      width: model width M.
      hidden: feed-forward width F.
      layers: number of blocks.
      heads: query heads.
      kv_heads: key and value heads; divides ``heads``.
      head_dim: width of a head.
      ropes: rotary embedding of layers that see everything, and of those with a window.
      windows: for each layer how many tokens it sees, its own included; 0 for all before.
      norm_eps: added to the mean square in norms.
      tied: whether the head is the embedding table.
      qkv_bias: queries, keys and values have biases.
      out_bias: so has the attention's output.
      qk_norm: queries and keys are normalised head by head.
      sandwich: attention and feed-forward are normalised also after they ran.
      activation: of the gate: ``"silu"`` or ``"gelu"`` (its tanh form).
      embed_scale: what embeddings are multiplied by.
      query_scale: what scores are multiplied by on top of 1 / sqrt(head_dim).
      last_norm: whether the last layer is normalised; not so in a model cut short.
      head: whether logits can be had.
    """

    vocab_size: int
    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ropes: tuple[Rope, Rope]
    windows: tuple[int, ...]
    norm_eps: float = 1e-6
    tied: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    sandwich: bool = False
    activation: str = "silu"
    embed_scale: float = 1.0
    query_scale: float = 1.0
    last_norm: bool = True
    head: bool = True

    def __post_init__(self):
        sizes = (self.vocab_size, self.width, self.hidden, self.heads, self.kv_heads, self.head_dim)
        if not all(isinstance(n, int) and n > 0 for n in sizes) or self.head_dim % 2:
            raise ValueError(
                "width, heads, their even width and the other sizes are whole numbers above 0"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.kv_heads} key heads do not divide {self.heads} heads")
        if len(self.windows) != self.layers or not all(
            isinstance(n, int) and n >= 0 for n in self.windows
        ):
            raise ValueError(f"windows {self.windows} are no sizes of {self.layers} layers")
        if not (isinstance(self.norm_eps, (int, float)) and 0 <= self.norm_eps < 1):
            raise ValueError(f"{self.norm_eps!r} is added in norms, and must be in [0, 1)")


class Spec(NamedTuple):
    """Shape of a parameter and the logical axis (see ``AxisRules``) of each dimension."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]


def param_specs(config: DecoderConfig) -> dict:
    """The tree of parameters; those of blocks are stacked along a first axis ``layers``."""
    M, F, Y = config.width, config.hidden, config.layers
    of_heads, of_kv = config.heads * config.head_dim, config.kv_heads * config.head_dim

    def block(shape, *axes):
        return Spec((Y, *shape), ("layers", *axes))

    blocks = {
        "attention_norm": block((M,), "embed"),
        "query": block((M, of_heads), "embed", "heads"),
        "key": block((M, of_kv), "embed", "heads"),
        "value": block((M, of_kv), "embed", "heads"),
        "out": block((of_heads, M), "heads", "embed"),
        "mlp_norm": block((M,), "embed"),
        "gate": block((M, F), "embed", "mlp"),
        "up": block((M, F), "embed", "mlp"),
        "down": block((F, M), "mlp", "embed"),
    }
    if config.qkv_bias:
        blocks["query_bias"] = block((of_heads,), "heads")
        blocks["key_bias"] = blocks["value_bias"] = block((of_kv,), "heads")
    if config.out_bias:
        blocks["out_bias"] = block((M,), "embed")
    if config.qk_norm:
        blocks["query_norm"] = blocks["key_norm"] = block((config.head_dim,), "head_dim")
    if config.sandwich:
        blocks["attention_post_norm"] = blocks["mlp_post_norm"] = block((M,), "embed")
    specs = {
        "embed": Spec((config.vocab_size, M), ("vocab", "embed")),
        "blocks": blocks,
    }
    if config.last_norm:
        specs["norm"] = Spec((M,), ("embed",))
    if config.head and not config.tied:
        specs["head"] = Spec((M, config.vocab_size), ("embed", "vocab"))
    return specs


def resolve_layers(layers: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Layers as numbers from 0 (embeddings) to ``count`` (the last, normalised); -1 is the last.

    Raises:
      UserError: there is no such layer.
    """
    for layer in layers:
        if not -count - 1 <= layer <= count:
            raise UserError(f"teacher layer {layer}: the model has layers 0 to {count}.")
    return tuple(layer % (count + 1) for layer in layers)


def outputs_after(wanted: tuple[int, ...], block, x: jax.Array, inputs) -> dict[int, jax.Array]:
    """What comes out of chosen blocks, by their number from 1 (0: ``x`` itself).

    Args:
      wanted: numbers of blocks; those above the highest are not run.
      block: (x, inputs of a block) -> (x, None), as ``jax.lax.scan`` takes it.
      x: what goes into the first block.
      inputs: of all blocks, stacked along the first axis.
    """
    outputs, done = {0: x}, 0
    for number in sorted(set(wanted)):
        part = jax.tree.map(lambda a, s=slice(done, number): a[s], inputs)
        x, _ = jax.lax.scan(block, x, part)
        outputs[number], done = x, number
    return outputs


def hidden_states(
    params: dict,
    tokens_BxN: jax.Array,
    segments_BxN: jax.Array,
    *,
    config: DecoderConfig,
    layers: tuple[int, ...],
    dtype: jnp.dtype = jnp.float32,
    attention: str = "xla",
) -> list[jax.Array]:
    """Hidden states (B, N, M) of chosen layers; blocks above the highest are not run.

    Args:
      params: see ``param_specs``.
      tokens_BxN: token ids.
      segments_BxN: document number of each token, 0 for padding; documents do not see each other,
        and each counts its positions from 0.
      config: the model.
      layers: which, see ``resolve_layers``; the last is normalised, the others are not.
      dtype: of the products.
      attention: ``"xla"``, or ``"splash"`` for the kernel of ``models.kernels.splash``.

    Raises:
      UserError: no such layer, or the kernel cannot do what the model needs.
    """
    wanted = resolve_layers(layers, config.layers)
    x_BxNxM = embed(params, tokens_BxN, config)
    layout = token_layout(segments_BxN, 1)
    if attention == "splash":
        attend_to = _kernel_attention(block_causal(layout), config)
    else:
        same_BxNxN = same_document(segments_BxN, segments_BxN)
        attend_to = causal_attention(same_BxNxN, layout.positions_BxN)
    states = run_blocks(
        params["blocks"], x_BxNxM, attend_to, layout.positions_BxN, config=config, wanted=wanted,
        dtype=dtype,
    )  # fmt: skip
    if config.layers in states and config.last_norm:
        states[config.layers] = last_norm(params, states[config.layers], config)
    return [states[layer] for layer in wanted]


def embed(params: dict, tokens_BxN: jax.Array, config: DecoderConfig) -> jax.Array:
    """What goes into the first block (B, N, M), fp32."""
    x_BxNxM = jnp.take(params["embed"], tokens_BxN, axis=0).astype(jnp.float32)
    return x_BxNxM * config.embed_scale


def last_norm(params: dict, x_BxNxM: jax.Array, config: DecoderConfig) -> jax.Array:
    """What the head reads, from what comes out of the last block."""
    return _norm(x_BxNxM, params["norm"], config)


def head(params: dict, config: DecoderConfig) -> jax.Array:
    """The map (M, V) from the last hidden state to logits."""
    return params["embed"].T if config.tied else params["head"]


def causal_attention(allowed_BxNxN: jax.Array, positions_BxN: jax.Array) -> Attend:
    """Attention to related keys that stand before a query or with it, as far as a window reaches.

    Args:
      allowed_BxNxN: true where a query (first) may see a key.
      positions_BxN: position of each token within its text.
    """
    index_N = jnp.arange(positions_BxN.shape[1])
    causal_BxNxN = allowed_BxNxN & (index_N[:, None] >= index_N)
    offset_BxNxN = positions_BxN[:, :, None] - positions_BxN[:, None, :]

    def attend_to(q_BxNxHxK, k_BxNxGxK, v_BxNxGxK, window):
        mask_BxNxN = causal_BxNxN & ((window == 0) | (offset_BxNxN < window))
        return masked_attention(q_BxNxHxK, k_BxNxGxK, v_BxNxGxK, mask_BxNxN)

    return attend_to


def _kernel_attention(mask: AttentionMask, config: DecoderConfig) -> Attend:
    """The same by a kernel, which knows no windows: none may be shorter than the rows."""
    N = mask.query.positions_BxN.shape[1]
    short = sorted({window for window in config.windows if 0 < window < N})
    if short or config.head_dim % LANES or N % LANES:
        raise UserError(
            f"teacher.attention = 'splash' needs heads of a multiple of {LANES} wide (the teacher "
            f"has {config.head_dim}), rows of a multiple of {LANES} tokens ({N}), and no window "
            f"shorter than a row ({short}); use teacher.attention='xla'."
        )

    def attend_to(q_BxNxHxK, k_BxNxGxK, v_BxNxGxK, window):
        del window
        return attend(q_BxNxHxK, (k_BxNxGxK,), (v_BxNxGxK,), mask, implementation="splash")

    return attend_to


def run_blocks(
    blocks: dict,
    x_BxNxM: jax.Array,
    attend_to: Attend,
    positions_BxN: jax.Array,
    *,
    config: DecoderConfig,
    wanted: tuple[int, ...],
    dtype: jnp.dtype,
) -> dict[int, jax.Array]:
    """What comes out of chosen blocks, by their number from 1 (0: what goes in).

    Args:
      blocks: parameters of ``config.layers`` blocks, stacked.
      x_BxNxM: what goes into the first.
      attend_to: attention, see ``causal_attention``.
      positions_BxN: position of each token within its text.
      config: the model.
      wanted: numbers of blocks; those above the highest are not run.
      dtype: of the products.
    """
    axes = {name: spec.axes[1:] for name, spec in param_specs(config)["blocks"].items()}

    def block(x_BxNxM, inputs):
        p, window, frequency_K, scale = inputs
        x_BxNxM = constrain(x_BxNxM, "batch", None, None)
        p = {k: gather_kernel(v, axes[k], dtype) if v.ndim == 2 else v for k, v in p.items()}
        of_layer = partial(attend_to, window=window)
        x_BxNxM += _attention(p, x_BxNxM, of_layer, positions_BxN, frequency_K, scale,
                              config, dtype)  # fmt: skip
        return x_BxNxM + _feed_forward(p, x_BxNxM, config, dtype), None

    windows = np.array(config.windows, np.int32)
    kinds = (windows > 0).astype(int)
    frequencies = np.stack([rope.frequencies(config.head_dim) for rope in config.ropes])[kinds]
    scales = np.array([rope.scale for rope in config.ropes], np.float32)[kinds]
    return outputs_after(wanted, block, x_BxNxM, (blocks, windows, frequencies, scales))


def logits(
    params: dict, tokens_BxN, segments_BxN, *, config: DecoderConfig, dtype=jnp.float32
) -> jax.Array:
    """Logits (B, N, V) of each next token, fp32; arguments as of ``hidden_states``."""
    (x_BxNxM,) = hidden_states(
        params, tokens_BxN, segments_BxN, config=config, layers=(config.layers,), dtype=dtype
    )
    return matmul(x_BxNxM, head(params, config), dtype).astype(jnp.float32)


def _norm(x, scale, config: DecoderConfig) -> jax.Array:
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean_square + config.norm_eps) * scale.astype(jnp.float32)


def _attention(p, x_BxNxM, attend_to, positions_BxN, frequency_K, scale, config, dtype):
    y_BxNxM = _norm(x_BxNxM, p["attention_norm"], config)

    def project(name, heads):
        y = matmul(y_BxNxM, p[name], dtype).astype(jnp.float32)
        if config.qkv_bias:
            y += p[f"{name}_bias"].astype(jnp.float32)
        return y.reshape(*y.shape[:2], heads, config.head_dim)

    q_BxNxHxK, k_BxNxGxK = project("query", config.heads), project("key", config.kv_heads)
    v_BxNxGxK = project("value", config.kv_heads)
    if config.qk_norm:
        q_BxNxHxK = _norm(q_BxNxHxK, p["query_norm"], config)
        k_BxNxGxK = _norm(k_BxNxGxK, p["key_norm"], config)
    parts = (x.astype(activation_dtype(dtype)) for x in (q_BxNxHxK, k_BxNxGxK, v_BxNxGxK))
    q_BxNxHxK, k_BxNxGxK, v_BxNxGxK = parts

    def turn(x, scale):
        return (rotate(x, positions_BxN, frequency_K) * scale).astype(x.dtype)

    q_BxNxHxK, k_BxNxGxK = turn(q_BxNxHxK, scale * config.query_scale), turn(k_BxNxGxK, scale)
    out_BxNxHxK = attend_to(q_BxNxHxK, k_BxNxGxK, v_BxNxGxK)
    out = matmul(out_BxNxHxK.reshape(*x_BxNxM.shape[:2], -1), p["out"], dtype).astype(jnp.float32)
    if config.out_bias:
        out += p["out_bias"].astype(jnp.float32)
    return _norm(out, p["attention_post_norm"], config) if config.sandwich else out


def _feed_forward(p, x_BxNxM, config: DecoderConfig, dtype):
    y_BxNxM = _norm(x_BxNxM, p["mlp_norm"], config)
    gate_BxNxF = matmul(y_BxNxM, p["gate"], dtype).astype(jnp.float32)
    activate = jax.nn.silu if config.activation == "silu" else jax.nn.gelu
    hidden_BxNxF = activate(gate_BxNxF) * matmul(y_BxNxM, p["up"], dtype)
    out_BxNxM = matmul(hidden_BxNxF, p["down"], dtype).astype(jnp.float32)
    return _norm(out_BxNxM, p["mlp_post_norm"], config) if config.sandwich else out_BxNxM
