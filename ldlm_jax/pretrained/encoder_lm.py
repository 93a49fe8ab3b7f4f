"""The BERT family of bidirectional encoders, frozen: pure functions of a tree of parameters.

BERT, MiniLM and other sentence encoders, and RoBERTa with its shifted positions. Post-norm blocks
with biases everywhere.

Shape letters: B rows, N tokens, M width, H heads, K head width, F feed-forward width, V vocabulary,
Y layers.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ldlm_jax.errors import UserError
from ldlm_jax.models.attention import masked_attention
from ldlm_jax.models.dense import gather_kernel, matmul
from ldlm_jax.models.lowering import constrain
from ldlm_jax.models.masks import same_document
from ldlm_jax.models.token_layout import token_layout
from ldlm_jax.pretrained.decoder_lm import Spec, outputs_after, resolve_layers


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of a model. Hashable: a static argument.

    Attributes:
      vocab_size: tokens V.
      width: model width M.
      hidden: feed-forward width F.
      layers: number of blocks.
      heads: attention heads.
      positions: rows of the position table.
      first_position: row of a text's first token: 0, in RoBERTa the padding id plus one.
      norm_eps: added to the variance in norms.
    """

    vocab_size: int
    width: int
    hidden: int
    layers: int
    heads: int
    positions: int
    first_position: int = 0
    norm_eps: float = 1e-12

    @property
    def context(self) -> int:
        """Longest text in tokens."""
        return self.positions - self.first_position


def param_specs(config: EncoderConfig) -> dict:
    """The tree of parameters; those of blocks are stacked along a first axis ``layers``."""
    M, F, Y = config.width, config.hidden, config.layers
    blocks = {}
    for name, out, axes in (
        ("query", M, ("embed", "heads")), ("key", M, ("embed", "heads")),
        ("value", M, ("embed", "heads")), ("out", M, ("heads", "embed")),
        ("up", F, ("embed", "mlp")), ("down", M, ("mlp", "embed")),
    ):  # fmt: skip
        inner = F if name == "down" else M
        blocks[name] = Spec((Y, inner, out), ("layers", *axes))
        blocks[f"{name}_bias"] = Spec((Y, out), ("layers", axes[1]))
    for name in ("attention_norm", "mlp_norm"):
        blocks[name] = blocks[f"{name}_bias"] = Spec((Y, M), ("layers", "embed"))
    return {
        "embed": Spec((config.vocab_size, M), ("vocab", "embed")),
        "position": Spec((config.positions, M), (None, "embed")),
        "kind": Spec((M,), ("embed",)),
        "norm": Spec((M,), ("embed",)),
        "norm_bias": Spec((M,), ("embed",)),
        "blocks": blocks,
    }


def hidden_states(
    params: dict,
    tokens_BxN: jax.Array,
    segments_BxN: jax.Array,
    *,
    config: EncoderConfig,
    layers: tuple[int, ...],
    dtype: jnp.dtype = jnp.float32,
) -> list[jax.Array]:
    """Hidden states (B, N, M) of chosen layers, 0 (embeddings) to ``config.layers``.

    Args:
      params: see ``param_specs``.
      tokens_BxN: token ids.
      segments_BxN: document number of each token, 0 for padding; documents do not see each other.
      config: the model.
      layers: which; -1 is the last. Blocks above the highest are not run.
      dtype: of the products.

    Raises:
      UserError: rows are longer than the model's table of positions.
    """
    if tokens_BxN.shape[1] > config.context:
        raise UserError(
            f"texts of {tokens_BxN.shape[1]} tokens are longer than the encoder's context of "
            f"{config.context}."
        )
    wanted = resolve_layers(layers, config.layers)
    layout = token_layout(segments_BxN)
    same_BxNxN = same_document(segments_BxN, segments_BxN)
    positions_BxN = layout.positions_BxN + config.first_position
    x_BxNxM = jnp.take(params["embed"], tokens_BxN, axis=0).astype(jnp.float32)
    x_BxNxM += jnp.take(params["position"], positions_BxN, axis=0) + params["kind"]
    x_BxNxM = _norm(x_BxNxM, params, "norm", config)

    axes = {name: spec.axes[1:] for name, spec in param_specs(config)["blocks"].items()}

    def block(x_BxNxM, p):
        x_BxNxM = constrain(x_BxNxM, "batch", None, None)
        p = {k: gather_kernel(v, axes[k], dtype) if v.ndim == 2 else v for k, v in p.items()}

        def dense(name, x):
            return matmul(x, p[name], dtype).astype(jnp.float32) + p[f"{name}_bias"]

        shape = (*x_BxNxM.shape[:2], config.heads, config.width // config.heads)
        q, k, v = (dense(name, x_BxNxM).reshape(shape) for name in ("query", "key", "value"))
        attended_BxNxM = dense("out", masked_attention(q, k, v, same_BxNxN).reshape(x_BxNxM.shape))
        x_BxNxM = _norm(x_BxNxM + attended_BxNxM, p, "attention_norm", config)
        hidden_BxNxF = jax.nn.gelu(dense("up", x_BxNxM), approximate=False)
        return _norm(x_BxNxM + dense("down", hidden_BxNxF), p, "mlp_norm", config), None

    states = outputs_after(wanted, block, x_BxNxM, params["blocks"])
    return [states[layer] for layer in wanted]


def _norm(x, params, name: str, config: EncoderConfig) -> jax.Array:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    normal = centred * jax.lax.rsqrt(variance + config.norm_eps)
    return normal * params[name] + params[f"{name}_bias"]
