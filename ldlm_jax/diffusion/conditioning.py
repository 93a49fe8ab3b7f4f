"""What is known and what is to be written: the parts of a document that training hides.

Known positions carry their clean latent and time 0; the rest carries the running time. Prompts,
infilling and revision are all of this one kind.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Shares:
    """How often training gives what of a document; what is left of 1 is written from nothing.

    Attributes:
      prefix: a beginning of uniform length.
      suffix: an end of uniform length.
      infill: all but one hole.
      spans: runs of a length (1 to 8 positions) that each document draws, each given or not.
    """

    prefix: float = 0.0
    suffix: float = 0.0
    infill: float = 0.0
    spans: float = 0.0


def draw_known(
    key: jax.Array,
    segments_BxN: jax.Array,
    positions_BxN: jax.Array,
    shares: Shares,
) -> jax.Array:
    """Draw for each document which of its positions are known.

    Args:
      key: random key.
      segments_BxN: document number, 0 for empty space.
      positions_BxN: position within the document.
      shares: how often what is given.

    Returns:
      bool (B, N). Every document keeps at least one unknown position.
    """
    B, N = segments_BxN.shape
    same_BxNxN = segments_BxN[:, :, None] == segments_BxN[:, None, :]
    length_BxN = jnp.sum(same_BxNxN, axis=-1)
    draw_key, run_key = jax.random.split(key)
    # One draw a document: indexed by its number, so that all its positions agree.
    draws = jax.random.uniform(draw_key, (4, B, N + 1))
    kind, a, b, c = (jnp.take_along_axis(u, segments_BxN, axis=1) for u in draws)
    place = positions_BxN
    low, high = (jnp.floor(f(a, b) * length_BxN) for f in (jnp.minimum, jnp.maximum))
    hidden_run = _runs(run_key, positions_BxN, 2 ** jnp.floor(4 * c).astype(int)) < a
    cases = (  # share, and where it hides something: always somewhere
        (shares.prefix, place >= jnp.floor(a * length_BxN)),
        (shares.suffix, place <= jnp.floor(a * length_BxN)),
        (shares.infill, (place >= low) & (place <= high)),
        (shares.spans, hidden_run | (place == jnp.floor(b * length_BxN))),
    )
    hidden, below = jnp.ones((B, N), bool), 0.0
    for share, hides in cases:
        hidden = jnp.where((kind >= below) & (kind < below + share), hides, hidden)
        below += share
    return ~hidden & (segments_BxN > 0)


def _runs(key: jax.Array, positions_BxN: jax.Array, run_BxN: jax.Array) -> jax.Array:
    """Uniform draws (B, N), one for each run of ``run`` positions of a document."""
    B, N = positions_BxN.shape
    # Each run takes the draw of its first position in the row.
    first_BxN = jnp.arange(N) - positions_BxN % run_BxN
    return jnp.take_along_axis(jax.random.uniform(key, (B, N)), first_BxN, axis=1)
