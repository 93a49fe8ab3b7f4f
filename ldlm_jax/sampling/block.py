"""One block of a text: denoised, decoded, remembered.

Shape letters: B rows, S latents of the block, T its tokens, D latent channels, V vocabulary.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ldlm_jax.data.tokenizer import MASK
from ldlm_jax.diffusion import schedule as path
from ldlm_jax.diffusion.guidance import guide
from ldlm_jax.diffusion.solvers import Guess, Sampled, Watch, row_keys, row_noise, sample
from ldlm_jax.models.denoiser import Denoiser, Estimate, Near
from ldlm_jax.models.dit import KNOWN, UNKNOWN, Memory
from ldlm_jax.models.token_layout import Places
from ldlm_jax.sampling.spec import NEAR, UNGIVEN, WHOLE, Dials, Plan, View


class Block(NamedTuple):
    """A block that is being written, and what is remembered of those before it.

    Attributes:
      places: of its positions.
      known_BxS: true where the text is given.
      given_BxSxD: the clean latents there, and of what is to be revised.
      inside_BxT: true where the text cannot end, by token.
      memories: of what is read before it, one for each of ``Plan.views``; empty for whole texts.
    """

    places: Places
    known_BxS: jax.Array
    given_BxSxD: jax.Array
    inside_BxT: jax.Array
    memories: dict[View, Memory]

    def keep_given(self, z_BxSxD: jax.Array) -> jax.Array:
        """Latents with the given ones in their places."""
        return jnp.where(self.known_BxS[..., None], self.given_BxSxD, z_BxSxD)

    @property
    def to_write_BxS(self) -> jax.Array:
        """True where there is something to write."""
        return ~self.known_BxS & (self.places.segments_BxN > 0)


def solve(denoiser: Denoiser, plan: Plan, block: Block, dials: Dials) -> Sampled:
    """Latents of the block, and what each step would decode to if anything looks at that."""

    def estimate(z_BxSxD, t_BxS, earlier_BxSxD, keys_B) -> Guess:
        z_BxSxD = block.keep_given(z_BxSxD)
        blank_BxSxD = jnp.zeros_like(earlier_BxSxD)
        if plan.diffusion.self_condition == 0:
            earlier_BxSxD = blank_BxSxD

        def ask(view: View, earlier_BxSxD, near=None) -> Estimate:
            state_BxS = jnp.where(block.known_BxS, view.mark, UNKNOWN)
            inputs = z_BxSxD, t_BxS, state_BxS, earlier_BxSxD, block.places
            return denoiser(*inputs, block.memories.get(view), near=near)

        near, less = None, []
        if plan.context_guided:
            near = Near(block.memories.get(NEAR), dials.context_guidance_B[:, None, None])
        with_both = ask(WHOLE, earlier_BxSxD, near)
        if plan.guided:
            here_BxS = (t_BxS >= dials.guidance_from_B[:, None]) & (
                t_BxS <= dials.guidance_to_B[:, None]
            )
            weight_BxS = jnp.where(here_BxS, dials.guidance_B[:, None], 1.0)
            less.append((ask(UNGIVEN, earlier_BxSxD), weight_BxS[..., None]))
        if plan.self_guided:
            less.append((ask(WHOLE, blank_BxSxD), dials.self_guidance_B[:, None, None]))
        both_BxSxD = clean_BxSxD = with_both.clean_BxNxD
        for other, weight in less:
            clean_BxSxD += guide(both_BxSxD, other.clean_BxNxD, weight) - both_BxSxD
        drawn_BxSxD, looked_at = None, ()
        if plan.solver.name == "ancestral":
            # Guidance shifts the draw as it shifts the mean: logits cut to their nuclei, of which
            # one may hold what the other does not, cannot be told apart by a difference.
            of_tokens_BxSxD = denoiser.draw(with_both.logits_BxLxV, keys_B) - with_both.mean_BxNxD
            drawn_BxSxD = block.keep_given(clean_BxSxD + of_tokens_BxSxD)
        clean_BxSxD = block.keep_given(clean_BxSxD)
        if plan.traced or plan.early:
            logits_BxTxV = with_both.logits_BxLxV
            if logits_BxTxV is None:
                logits_BxTxV = denoiser.read(clean_BxSxD, block.places)
            looked_at = _likeliest(logits_BxTxV)
        return Guess(clean_BxSxD, looked_at, drawn_BxSxD)

    times_KxBxS = plan.times(block.known_BxS.shape[1], dials)
    noise_BxSxD = row_noise(row_keys(dials.keys_B, 0), block.given_BxSxD.shape[1:])
    # From pure noise, or from what is to be revised with noise on it.
    start_BxSxD = path.interpolate(block.given_BxSxD, noise_BxSxD, times_KxBxS[0])
    return sample(
        estimate,
        start_BxSxD,
        jnp.where(block.known_BxS, 0.0, times_KxBxS),
        row_keys(dials.keys_B, 1),
        plan.solver,
        _patience(block, dials) if plan.early else None,
    )


def _patience(block: Block, dials: Dials) -> Watch:
    """Stop once the tokens have stayed the same, all of them probable, for so many steps."""
    T = block.inside_BxT.shape[1]
    looked_at_BxT = jnp.repeat(block.to_write_BxS, T // block.known_BxS.shape[1], axis=1)

    def look(state, said):
        before_BxT, count_B = state
        tokens_BxT, confidence_BxT = said
        still_BxT = (tokens_BxT == before_BxT) & (confidence_BxT >= dials.sure_B[:, None])
        count_B = jnp.where(jnp.all(still_BxT | ~looked_at_BxT, axis=1), count_B + 1, 0)
        return (tokens_BxT, count_B), (count_B >= dials.patience_B) & (dials.patience_B > 0)

    return Watch((jnp.full(looked_at_BxT.shape, -1), jnp.zeros(len(looked_at_BxT), int)), look)


def decode(denoiser: Denoiser, block: Block, z_BxSxD) -> jax.Array:
    """The likeliest tokens of the block."""
    logits = denoiser.token_logits(
        block.keep_given(z_BxSxD), jnp.zeros(block.known_BxS.shape), block.places,
        block.memories.get(WHOLE),
    )  # fmt: skip
    return _likeliest(logits)[0]


def _likeliest(logits_BxTxV) -> tuple[jax.Array, jax.Array]:
    """The likeliest tokens and their probabilities. A text never holds a masked token."""
    probability_BxTxV = jax.nn.softmax(logits_BxTxV.at[..., MASK].set(-jnp.inf))
    return jnp.argmax(probability_BxTxV, axis=-1), jnp.max(probability_BxTxV, axis=-1)


def remember(denoiser: Denoiser, block: Block, slot) -> dict[View, Memory]:
    """The memories with a finished block in this slot, whatever was there."""

    def put(whole, own, axis):
        return jax.lax.dynamic_update_slice_in_dim(whole, own, slot, axis)

    added = {}
    for view, memory in block.memories.items():
        state_BxS = jnp.where(block.known_BxS, view.mark, KNOWN)
        new = denoiser.remember(block.given_BxSxD, state_BxS, block.places, memory, view.near)
        added[view] = Memory(
            jax.tree.map(partial(put, axis=2), memory.keys_and_values, new.keys_and_values),
            put(memory.features_BxRxM, new.features_BxRxM, axis=1),
            jax.tree.map(partial(put, axis=1), memory.places, block.places),
        )
    return added
