"""One evaluation of the denoiser for a block, with guidance around it.

Shape letters: B rows, S latents of the block, T its tokens, D latent channels, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ldlm_jax.diffusion.guidance import guide, guide_by_context
from ldlm_jax.diffusion.solvers import Estimate
from ldlm_jax.models.denoiser import Denoiser, Prediction
from ldlm_jax.models.dit import GENERATED, KVCache, NoisyInputs
from ldlm_jax.models.token_layout import TokenLayout
from ldlm_jax.sampling.logits import draw_tokens, end_tokens, likeliest
from ldlm_jax.sampling.spec import FULL, SHORT, UNCONDITIONAL, Branch, Spec


class Block(NamedTuple):
    """A block that is being generated, and the caches of those before it.

    Attributes:
      layout: of its positions.
      observed_BxS: true where the text is observed.
      given_BxSxD: the clean latents there, and of what is to be revised.
      no_end_BxT: true where the text cannot end, by token.
      caches: one for each of ``Spec.branches``; empty for whole texts.
      encode: latents (B, S, D) of the block with these tokens (B, T) in it.
    """

    layout: TokenLayout
    observed_BxS: jax.Array
    given_BxSxD: jax.Array
    no_end_BxT: jax.Array
    caches: dict[Branch, KVCache]
    encode: Callable[[jax.Array], jax.Array]

    def with_observed(self, z_BxSxD: jax.Array) -> jax.Array:
        """Latents with the observed ones in their places."""
        return jnp.where(self.observed_BxS[..., None], self.given_BxSxD, z_BxSxD)

    @property
    def to_generate_BxS(self) -> jax.Array:
        """True where there is something to generate."""
        return ~self.observed_BxS & self.layout.in_document_BxN

    def inputs(self, z_BxSxD, t_BxS, previous_BxSxD, branch: Branch) -> NoisyInputs:
        """What a branch's evaluation of the denoiser is given."""
        conditioning_BxS = jnp.where(self.observed_BxS, branch.conditioning, GENERATED)
        return NoisyInputs(z_BxSxD, t_BxS, conditioning_BxS, previous_BxSxD, self.layout)


def guided_by_context(
    denoiser: Denoiser, inputs: NoisyInputs, short_cache: KVCache | None, weight_B
) -> Denoiser:
    """The denoiser for these inputs, its context's logits pushed away from a short context's."""
    out = denoiser.forward(inputs, short_cache, window=1)
    plain = replace(denoiser, logits_processor=None)
    short_BxTxV = plain.read(out.features_BxNxM, inputs.layout)
    process = denoiser.logits_processor

    def guided(logits_BxTxV):
        ends_V = end_tokens(logits_BxTxV.shape[-1])
        weight = weight_B[:, None, None]
        return process(guide_by_context(logits_BxTxV, short_BxTxV, weight, ends_V))

    return replace(denoiser, logits_processor=guided)


def guided_estimate(denoiser: Denoiser, spec: Spec, block: Block, rows: dict):
    """The block's ``solvers.Denoise``: clean latents, and the tokens of each step if they are
    traced or watched."""

    def estimate(z_BxSxD, t_BxS, previous_BxSxD, keys_B) -> Estimate:
        z_BxSxD, blank_BxSxD = block.with_observed(z_BxSxD), jnp.zeros_like(previous_BxSxD)
        if spec.diffusion.self_condition == 0:
            previous_BxSxD = blank_BxSxD

        def ask(branch: Branch, previous_BxSxD, denoiser=denoiser) -> Prediction:
            inputs = block.inputs(z_BxSxD, t_BxS, previous_BxSxD, branch)
            return denoiser.denoise(inputs, block.caches.get(branch))

        asked = denoiser
        if "context_guidance" in spec.in_use:
            inputs = block.inputs(z_BxSxD, t_BxS, previous_BxSxD, FULL)
            weight_B, short_cache = rows["context_guidance"], block.caches.get(SHORT)
            asked = guided_by_context(denoiser, inputs, short_cache, weight_B)
        full = ask(FULL, previous_BxSxD, asked)
        against = []  # other predictions, and how far to go from them
        if "guidance" in spec.in_use:
            weight_B = rows["guidance"]
            against.append((ask(UNCONDITIONAL, previous_BxSxD), weight_B[:, None, None]))
        if "self_condition_guidance" in spec.in_use:
            weight_B = rows["self_condition_guidance"]
            against.append((ask(FULL, blank_BxSxD), weight_B[:, None, None]))
        clean_BxSxD = full.clean_BxNxD
        for other, weight in against:
            clean_BxSxD += guide(full.clean_BxNxD, other.clean_BxNxD, weight) - full.clean_BxNxD
        clean_BxSxD = block.with_observed(clean_BxSxD)
        ancestral, watched = spec.solver.name == "ancestral", spec.traced or spec.early
        logits_BxTxV = full.logits_BxLxV
        if logits_BxTxV is None and (ancestral or watched):
            logits_BxTxV = denoiser.read(clean_BxSxD, block.layout)
        drawn_BxSxD, tokens = None, likeliest(logits_BxTxV) if watched else ()
        if ancestral and denoiser.posterior is None:
            drawn_BxSxD = block.with_observed(block.encode(draw_tokens(keys_B, logits_BxTxV)))
        elif ancestral:
            # Guidance shifts the draw as it shifts the mean: logits cut to their nuclei, of which
            # one may hold what the other does not, cannot be told apart by a difference.
            draw_BxSxD = denoiser.posterior.draw(logits_BxTxV, keys_B)
            drawn_BxSxD = block.with_observed(clean_BxSxD + draw_BxSxD - full.mean_BxNxD)
        return Estimate(clean_BxSxD, tokens, drawn_BxSxD)

    return estimate
