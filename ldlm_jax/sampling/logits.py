"""From logits to tokens: what the context may propose, and which token is the likeliest.

Shape letters: B rows, T tokens, V vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ldlm_jax.data.special_ids import EOS, MASK, PAD
from ldlm_jax.diffusion.rows import row_choice

# Nats by which tokens outside the nucleus are held less likely. None is ever drawn, but what a
# noisy latent itself tells can overrule it: else a drawn token would be another in the next step.
_OUTSIDE = 30.0
# The logit of what must not be.
_IMPROBABLE = -1e4


def top_p_filter(logits: jax.Array, top_p: jax.Array) -> jax.Array:
    """Logits of which only the likeliest tokens are left, the others 30 nats below.

    The fewest tokens whose probabilities add up to ``top_p`` (Holtzman et al. 2020, "The Curious
    Case of Neural Text Degeneration"). Their least likely one is found by halving an interval:
    sorting a vocabulary takes a CPU longer than the network does.

    Args:
      logits: (..., V).
      top_p: probability to keep, broadcastable to (..., 1); 1 keeps all.
    """
    probability = jax.nn.softmax(logits)

    def halve(interval, _):
        low, high = interval
        middle = (low + high) / 2
        enough = jnp.sum(jnp.where(probability >= middle, probability, 0), -1, keepdims=True)
        return jax.tree.map(
            lambda a, b: jnp.where(enough >= top_p, a, b), (middle, high), (low, middle)
        ), None

    interval = jnp.zeros_like(probability[..., :1]), jnp.max(probability, -1, keepdims=True)
    (least, _), _ = jax.lax.scan(halve, interval, length=30)
    return jnp.where(probability >= least, logits, logits - _OUTSIDE)


def end_tokens(vocab_size: int) -> jax.Array:
    """True (V,) for tokens that end a text, or stand after its end."""
    return jnp.isin(jnp.arange(vocab_size), jnp.array([EOS, PAD]))


def logits_processor(
    temperature_B, top_p_B=None, no_end_BxT=None
) -> Callable[[jax.Array], jax.Array]:
    """What a sampler makes of the context's logits (B, T, V); see ``Denoiser.logits_processor``.

    Args:
      temperature_B: divides the logits of each row.
      top_p_B: see ``top_p_filter``; None for all tokens.
      no_end_BxT: true where the text cannot end; None where it may anywhere.
    """

    def process(logits_BxTxV):
        logits_BxTxV = logits_BxTxV / temperature_B[:, None, None]
        if no_end_BxT is not None:
            ends_V = end_tokens(logits_BxTxV.shape[-1])
            logits_BxTxV = jnp.where(no_end_BxT[..., None] & ends_V, _IMPROBABLE, logits_BxTxV)
        return logits_BxTxV if top_p_B is None else top_p_filter(
            logits_BxTxV, top_p_B[:, None, None]
        )  # fmt: skip

    return process


def _without_mask(logits_BxTxV) -> jax.Array:
    """A text never holds a masked token."""
    return logits_BxTxV.at[..., MASK].set(-jnp.inf)


def draw_tokens(keys_B, logits_BxTxV) -> jax.Array:
    """Tokens (B, T) drawn by their logits, each row by its own key."""
    return row_choice(keys_B, _without_mask(logits_BxTxV))


def likeliest(logits_BxTxV) -> tuple[jax.Array, jax.Array]:
    """The likeliest tokens and their probabilities."""
    probability_BxTxV = jax.nn.softmax(_without_mask(logits_BxTxV))
    return jnp.argmax(probability_BxTxV, axis=-1), jnp.max(probability_BxTxV, axis=-1)
