"""The fused train step: reconstruction, KL, diffusion and alignment in one jitted function.

    loss = w_rec CE + w_kl KL + w_diff |z_0 - z_0^|^2 + w_token CE^ + w_align (1 - cos)

Models of blocks may add the cross-entropy of next tokens.

Shape letters: B rows, L tokens, N latents, D latent channels, M width, H features.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.diffusion.objective import masked_mean
from ldlm_jax.losses.alignment import AlignmentConfig, alignment_loss
from ldlm_jax.losses.autoencoder import (
    AutoencodingConfig,
    draw_latents,
    kl_loss,
    latent_moments,
    mask_tokens,
    reconstruction_loss,
)
from ldlm_jax.losses.batch import Batch, lay_out
from ldlm_jax.losses.denoising import denoising_loss
from ldlm_jax.losses.next_token import next_token_loss
from ldlm_jax.models.denoiser import Denoiser
from ldlm_jax.models.dit import HIDDEN, OBSERVED
from ldlm_jax.models.lowering import compiler_options
from ldlm_jax.models.networks import LatentStats, Networks, with_backbone
from ldlm_jax.optimizer import OptimizerConfig, ema_step_size
from ldlm_jax.phases import LOSSES, Phase, weight_at
from ldlm_jax.teachers.teacher import PretrainedTeacher
from ldlm_jax.train_state import TrainState, group_of


@dataclass(frozen=True)
class Recipe:
    """Everything static that the step depends on, but the phase."""

    networks: Networks
    autoencoding: AutoencodingConfig
    diffusion: DiffusionConfig
    optim: OptimizerConfig
    alignment: AlignmentConfig = AlignmentConfig()
    teacher: PretrainedTeacher | None = None
    microbatches: int = 1
    logit_chunks: int = 1


class Frozen(NamedTuple):
    """What never learns, and is in no checkpoint.

    Attributes:
      teacher: parameters of the model with which a phase aligns, or None.
      backbone: weights of the model between whose blocks the latents stand, or None.
    """

    teacher: dict | None = None
    backbone: dict | None = None


NOTHING_FROZEN = Frozen()


def _stop_gradients(params, phase: Phase):
    """Parameters of which those of the phase's groups alone receive gradient."""
    return jax.tree.map_with_path(
        lambda p, x: x if group_of(p) in phase.train else jax.lax.stop_gradient(x), params
    )


def _scale_gradient(z_0_BxNxD, phase: Phase, step):
    """The same latents, through which the encoder receives its share of the gradient."""
    stopped_BxNxD = jax.lax.stop_gradient(z_0_BxNxD)
    if not phase.has("encoder_gradient"):
        return stopped_BxNxD
    share = weight_at(phase.encoder_gradient, step)
    return share * z_0_BxNxD + (1 - share) * stopped_BxNxD


def _autoencoder_terms(keys, denoiser: Denoiser, batch: Batch, posterior, phase, recipe: Recipe):
    """Losses of the autoencoder alone, and what else is logged of it."""
    z_key, rec_key = keys
    z_raw_BxNxD = draw_latents(z_key, posterior)
    terms, aux = {}, {"moments": latent_moments(z_raw_BxNxD, batch.valid_BxN)}
    aux["logvar"] = masked_mean(jnp.mean(posterior.logvar_BxNxD, -1), batch.valid_BxN)
    if phase.has("reconstruction"):
        z_BxNxD = denoiser.latents.normalise(z_raw_BxNxD)
        terms["reconstruction"], aux["accuracy"] = reconstruction_loss(
            recipe.autoencoding, denoiser, rec_key, z_BxNxD, batch
        )
    if phase.has("kl"):
        terms["kl"] = kl_loss(posterior, batch.valid_BxN)
    return terms, aux


def _denoiser_terms(key, denoiser: Denoiser, batch: Batch, z_0_BxNxD, phase: Phase):
    """Losses of the prefill and of denoising, and the features that they offer for alignment."""
    drop_key, hide_key = (jax.random.fold_in(key, i) for i in (2, 3))
    terms, sites, cache = {}, {}, None
    denoiser = replace(denoiser, dropout_key=drop_key)
    conditioning_BxN = batch.conditioning(hide_key, denoiser.config.condition_dropout)
    if denoiser.config.block_size:
        clean_BxN = jnp.where(conditioning_BxN == HIDDEN, HIDDEN, OBSERVED)
        prefill = denoiser.prefill(z_0_BxNxD, clean_BxN, batch.layout)
        cache, sites["clean_pass"] = prefill.cache, prefill.hidden_BxNxM
    if phase.has("next_token"):
        terms["next_token"] = next_token_loss(
            denoiser, prefill.features_BxNxM, batch.tokens_BxL, batch.layout
        )
    if phase.denoises:
        noisy = denoising_loss(
            denoiser, key, batch, z_0_BxNxD, conditioning_BxN, cache, tokens=phase.has("token")
        )
        both = {"diffusion": noisy.latents, "token": noisy.tokens}
        terms |= {name: term for name, term in both.items() if phase.has(name)}
        sites["dit"] = noisy.hidden_BxNxM
    return terms, sites


def _alignment_term(recipe: Recipe, params, frozen: Frozen, batch: dict, features, segments_BxN):
    """Distance of the student's features from the teacher's, once projected."""
    if "teacher" in batch:
        teacher_BxNxH = batch["teacher"]
    else:
        teacher_BxNxH = recipe.teacher.features(frozen.teacher, batch)
    mapped = recipe.networks.align.apply({"params": params["align"]}, features)
    return alignment_loss(mapped, teacher_BxNxH, segments_BxN)


def fused_loss(
    params,
    batch: dict,
    stats: LatentStats,
    key,
    step,
    frozen: Frozen = NOTHING_FROZEN,
    *,
    phase: Phase,
    recipe: Recipe,
):
    """The loss of one (micro)batch.

    Args:
      params: see ``TrainState``.
      batch: ``tokens`` and ``segments`` (B, L), int32; with alignment also what the teacher reads
        (``teachers.token_alignment``), or its features ``teacher`` (B, N, H).
      stats: running latent statistics, constants here.
      key: random key.
      step: for the schedules of the weights.
      frozen: see ``Frozen``.
      phase: which losses, and who receives gradient.
      recipe: networks and their corruption.

    Returns:
      The weighted sum, and a dict of the terms (``loss/...``), ``accuracy`` (of tokens, from noised
      latents), ``logvar`` and the batch's latent moments.
    """
    mask_key, observed_key, z_key, rec_key, diffusion_key = jax.random.split(key, 5)
    params = with_backbone(_stop_gradients(params, phase), frozen.backbone)
    networks, diffusion = recipe.networks, phase.times_of(recipe.diffusion)
    text = lay_out(observed_key, batch, networks, diffusion, phase.language_model)
    denoiser = Denoiser.create(networks, params, diffusion, stats, logit_chunks=recipe.logit_chunks)

    def encode(tokens_BxL):
        return networks.text_vae(
            params, tokens_BxL, text.layout, text.observed_BxN, method="encode"
        )

    autoencodes = any(map(phase.has, ("reconstruction", "kl", "alignment")))
    masked = recipe.autoencoding.token_mask > 0 and autoencodes
    tokens_BxL = text.tokens_BxL
    if masked:
        tokens_BxL = mask_tokens(mask_key, tokens_BxL, recipe.autoencoding.token_mask)
    posterior = encode(tokens_BxL)
    terms, aux = _autoencoder_terms((z_key, rec_key), denoiser, text, posterior, phase, recipe)
    sites = {"encoder": posterior.features_BxNxM, "latents": posterior.mean_BxNxD}
    if phase.denoises or phase.has("next_token"):
        # The denoiser learns the latents of whole texts, not of texts with masked tokens.
        whole = encode(text.tokens_BxL) if masked else posterior
        z_0_BxNxD = _scale_gradient(stats.normalise(draw_latents(z_key, whole)), phase, step)
        more_terms, more_sites = _denoiser_terms(diffusion_key, denoiser, text, z_0_BxNxD, phase)
        terms, sites = terms | more_terms, sites | more_sites
    if phase.has("alignment"):
        terms["alignment"] = _alignment_term(
            recipe, params, frozen, batch, sites[recipe.alignment.site], text.layout.segment_ids_BxN
        )
    loss = sum(weight_at(getattr(phase, name), step) * term for name, term in terms.items())
    return loss, aux | {f"loss/{name}": term for name, term in terms.items()}


def _gradients(state: TrainState, batch, key, frozen, phase, recipe: Recipe):
    """Loss, terms and gradients, averaged over microbatches inside the jit."""
    gradient = jax.value_and_grad(partial(fused_loss, phase=phase, recipe=recipe), has_aux=True)
    count = recipe.microbatches
    if count == 1:
        return gradient(state.params, batch, state.latents, key, state.step, frozen)
    # Rows are dealt out in turn, so that every device keeps its share of each microbatch.
    dealt = jax.tree.map(
        lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch
    )

    def of_part(index, rows):
        part_key = jax.random.fold_in(key, index)
        return gradient(state.params, rows, state.latents, part_key, state.step, frozen)

    def add(total, inputs):
        return jax.tree.map(lambda a, b: a + b / count, total, of_part(*inputs)), None

    shapes = jax.eval_shape(of_part, 0, jax.tree.map(lambda x: x[0], dealt))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, (jnp.arange(count), dealt))[0]


def train_step(
    state: TrainState,
    batch: dict,
    key,
    frozen: Frozen = NOTHING_FROZEN,
    *,
    phase: Phase,
    recipe: Recipe,
    optimizer,
):
    """One step of training; see ``compiled_step``.

    Args as of ``fused_loss``, and the state before the step, the run's key (the step is folded in
    here), and the optimizer of ``optimizer.make_optimizer``.

    Returns:
      The new state and metrics (scalars). If the loss or a gradient is not finite, only ``step``
      and ``skipped`` change.
    """
    key = jax.random.fold_in(key, state.step)
    (loss, aux), grads = _gradients(state, batch, key, frozen, phase, recipe)
    chex.assert_rank(loss, 0)
    moments = aux.pop("moments")
    norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    # Momentum and weight decay must not move what this phase holds still.
    updates = jax.tree.map_with_path(
        lambda p, u: u if group_of(p) in phase.train else jnp.zeros_like(u), updates
    )
    params = optax.apply_updates(state.params, updates)
    new = state.replace(
        params=params,
        ema=optax.incremental_update(params, state.ema, ema_step_size(recipe.optim, state.step)),
        opt_state=opt_state,
        latents=state.latents.update(*moments),
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
    new = new.replace(step=state.step + 1, skipped=state.skipped + ~finite)
    metrics = {
        "loss": loss,
        **aux,
        **{f"weight/{name}": weight_at(getattr(phase, name), state.step) for name in LOSSES},
        "grad_norm": norm,
        "skipped": new.skipped,
        "latent/mean_max": jnp.max(jnp.abs(new.latents.mean_D)),
        "latent/std_min": jnp.sqrt(jnp.min(new.latents.var_D)),
        "latent/std_max": jnp.sqrt(jnp.max(new.latents.var_D)),
    }
    return new, metrics


def compiled_step(recipe: Recipe, optimizer):
    """``train_step`` under jit: the state that it is given is used up; ``phase`` is static."""
    return jax.jit(
        partial(train_step, recipe=recipe, optimizer=optimizer),
        donate_argnums=0,
        static_argnames="phase",
        compiler_options=compiler_options(),
    )
