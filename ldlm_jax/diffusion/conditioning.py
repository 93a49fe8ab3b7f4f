"""Which positions of a document are observed in training, and which are to be generated.

Observed positions carry their clean latent and time 0; the rest carries the running time. Prompts,
infilling, revision and puzzles are all of this one kind.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class ObservedShares:
    """How often which part of a document is observed; the rest of 1 is generated from nothing.

    Attributes:
      prefix: a beginning of uniform length.
      suffix: an end of uniform length.
      infill: all but one span.
      random_spans: runs of a length (1 to 8 positions) that each document draws, each observed or
        not.
    """

    prefix: float = 0.0
    suffix: float = 0.0
    infill: float = 0.0
    random_spans: float = 0.0


def draw_observed(
    key: jax.Array, segments_BxN: jax.Array, positions_BxN: jax.Array, shares: ObservedShares
) -> jax.Array:
    """Draw for each document which of its positions are observed.

    Args:
      key: random key.
      segments_BxN: document number, 0 for empty space.
      positions_BxN: position within the document.
      shares: how often which part is observed.

    Returns:
      bool (B, N). Every document keeps at least one position to generate.
    """
    B, N = segments_BxN.shape
    length_BxN = document_lengths(segments_BxN)
    draw_key, run_key = jax.random.split(key)
    # One draw a document: indexed by its number, so that all its positions agree.
    draws = jax.random.uniform(draw_key, (4, B, N + 1))
    kind, a, b, c = (jnp.take_along_axis(u, segments_BxN, axis=1) for u in draws)
    low, high = (jnp.floor(f(a, b) * length_BxN) for f in (jnp.minimum, jnp.maximum))
    hidden_run = _runs(run_key, positions_BxN, 2 ** jnp.floor(4 * c).astype(int)) < a
    cases = (  # share, and where it hides something: always somewhere
        (shares.prefix, positions_BxN >= jnp.floor(a * length_BxN)),
        (shares.suffix, positions_BxN <= jnp.floor(a * length_BxN)),
        (shares.infill, (positions_BxN >= low) & (positions_BxN <= high)),
        (shares.random_spans, hidden_run | (positions_BxN == jnp.floor(b * length_BxN))),
    )
    hidden, below = jnp.ones((B, N), bool), 0.0
    for share, hides in cases:
        hidden = jnp.where((kind >= below) & (kind < below + share), hides, hidden)
        below += share
    return ~hidden & (segments_BxN > 0)


def document_lengths(segments_BxN: jax.Array) -> jax.Array:
    """For each position the length (B, N) of its document."""
    return jnp.sum(segments_BxN[:, :, None] == segments_BxN[:, None, :], axis=-1)


def _runs(key: jax.Array, positions_BxN: jax.Array, run_BxN: jax.Array) -> jax.Array:
    """Uniform draws (B, N), one for each run of ``run`` positions of a document."""
    B, N = positions_BxN.shape
    # Each run takes the draw of its first position in the row.
    first_BxN = jnp.arange(N) - positions_BxN % run_BxN
    return jnp.take_along_axis(jax.random.uniform(key, (B, N)), first_BxN, axis=1)
