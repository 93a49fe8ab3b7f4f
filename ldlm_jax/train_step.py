"""The fused train step: reconstruction, KL, diffusion and alignment in one jitted function.

    loss = w_rec CE + w_kl KL + w_diff |z_0 - z_0^|^2 + w_align (1 - cos)     (alignment.py)

Models of blocks may add next tokens (next_token.py), a phase that teaches to write in few steps
consistency (consistency.py).

Shape letters: B rows, L tokens, N latents, D latent channels, M width, V vocabulary, H features.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldlm_jax.alignment import AlignmentConfig, alignment_loss
from ldlm_jax.consistency import ConsistencyConfig, consistency_loss
from ldlm_jax.data.tokenizer import MASK
from ldlm_jax.denoiser import Denoiser, places_of, segments_of
from ldlm_jax.diffusion import path
from ldlm_jax.diffusion.known import draw_known
from ldlm_jax.diffusion.objective import masked_mean
from ldlm_jax.diffusion.time import draw_progress
from ldlm_jax.diffusion_config import DiffusionConfig
from ldlm_jax.errors import UserError, check_shares
from ldlm_jax.models.dit import DROPPED, KNOWN, UNKNOWN
from ldlm_jax.models.places import positions_of
from ldlm_jax.models.scores import COMPILER_OPTIONS
from ldlm_jax.next_token import next_token_loss
from ldlm_jax.optim import OptimConfig, ema_step_size
from ldlm_jax.phases import LOSSES, Phase, weight_at
from ldlm_jax.teachers.teacher import Teacher
from ldlm_jax.train_state import LatentStats, Models, TrainState, group_of, with_foundation


@dataclass(frozen=True)
class AutoencodingConfig:
    """How the autoencoder's life is made hard, so that its latents are predictive and forgiving.

    Attributes:
      token_mask: largest share of tokens hidden from the encoder; each row draws its own share
        uniformly from 0 to this.
      decoder_noise: largest standard deviation of the noise on latents before decoding, in units
        of the latents' own; each latent draws its own uniformly from 0 to this.
      latent_dropout: share of latents that the decoder sees as zeros.
    """

    token_mask: float = 0.3
    decoder_noise: float = 1.5
    latent_dropout: float = 0.1

    def __post_init__(self):
        check_shares("autoencoding", self, ("token_mask", "latent_dropout"))
        if self.decoder_noise < 0:
            raise UserError(f"autoencoding.decoder_noise = {self.decoder_noise}: at least 0.")


@dataclass(frozen=True)
class Recipe:
    """Everything static that the step depends on, but the phase."""

    models: Models
    autoencoding: AutoencodingConfig
    diffusion: DiffusionConfig
    optim: OptimConfig
    alignment: AlignmentConfig = AlignmentConfig()
    teacher: Teacher | None = None
    consistency: ConsistencyConfig = ConsistencyConfig()
    microbatches: int = 1
    logit_parts: int = 1


class Frozen(NamedTuple):
    """What never learns, and is in no checkpoint.

    Attributes:
      teacher: parameters of the model with which a phase aligns, or None.
      foundation: weights of the model between whose blocks the latents stand, or None.
    """

    teacher: dict | None = None
    foundation: dict | None = None


NOTHING_FROZEN = Frozen()


def _gaussian(key, posterior):
    noise = jax.random.normal(key, posterior.mean_BxNxD.shape)
    return posterior.mean_BxNxD + jnp.exp(0.5 * posterior.logvar_BxNxD) * noise


def _moments(z_BxNxD, valid_BxN):
    """First and second moment (D,) of the latents in use, without gradient."""
    count = jnp.maximum(valid_BxN.sum(), 1)
    return [
        jax.lax.stop_gradient(jnp.sum(jnp.where(valid_BxN[..., None], m, 0.0), (0, 1)) / count)
        for m in (z_BxNxD, jnp.square(z_BxNxD))
    ]


def _share_gradient(z_0_BxNxD, phase: Phase, step):
    """The same latents, through which the encoder receives its share of the gradient."""
    still_BxNxD = jax.lax.stop_gradient(z_0_BxNxD)
    if not phase.has("encoder_gradient"):
        return still_BxNxD
    share = weight_at(phase.encoder_gradient, step)
    return share * z_0_BxNxD + (1 - share) * still_BxNxD


def _kl(posterior, valid_BxN):
    """Divergence from the standard normal, mean over channels and valid places."""
    mean, logvar = posterior.mean_BxNxD, posterior.logvar_BxNxD
    return masked_mean(0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1 - logvar, axis=-1), valid_BxN)


def _hide(key, tokens_BxL, largest_share: float):
    """Tokens of which each row has a share masked, drawn uniformly from 0 to the largest."""
    share_key, place_key = jax.random.split(key)
    share_Bx1 = largest_share * jax.random.uniform(share_key, (tokens_BxL.shape[0], 1))
    return jnp.where(jax.random.uniform(place_key, tokens_BxL.shape) < share_Bx1, MASK, tokens_BxL)


def _reconstruction(config, denoiser: Denoiser, key, tokens_BxL, valid_BxL, z_BxNxD, places):
    """Cross-entropy of all tokens given noised latents, and the share of tokens got right."""
    level_key, noise_key, drop_key = jax.random.split(key, 3)
    shape = z_BxNxD.shape[:2]
    sigma_BxN = config.decoder_noise * jax.random.uniform(level_key, shape)
    z_BxNxD = z_BxNxD + sigma_BxN[..., None] * jax.random.normal(noise_key, z_BxNxD.shape)
    kept_BxN = jax.random.bernoulli(drop_key, 1 - config.latent_dropout, shape)
    z_BxNxD = jnp.where(kept_BxN[..., None], z_BxNxD, 0.0)
    scores = denoiser.token_scores(z_BxNxD, sigma_BxN, places, tokens_BxL)
    return masked_mean(scores.loss_BxL, valid_BxL), masked_mean(scores.hit_BxL, valid_BxL)


def _states(key, known_BxN, config: DiffusionConfig):
    """What the DiT is told of each latent: what some rows know is hidden, for guidance."""
    dropped_Bx1 = jax.random.bernoulli(key, config.condition_dropout, (len(known_BxN), 1))
    return jnp.where(known_BxN, jnp.where(dropped_Bx1, DROPPED, KNOWN), UNKNOWN)


def _diffusion(denoiser: Denoiser, key, z_0_BxNxD, tokens_BxL, state_BxN, places, memory, single_B):
    """Denoising error over the positions to be written, and what came out of the DiT's tap."""
    config, known_BxN = denoiser.config, state_BxN != UNKNOWN
    time_key, noise_key, self_key = jax.random.split(key, 3)
    B, N, D = z_0_BxNxD.shape
    progress_BxN = draw_progress(time_key, B, N, config.block_size, config.own_times, single_B)
    t_BxN = jnp.where(known_BxN, 0.0, config.law(D).quantile(progress_BxN))
    z_t_BxNxD = path.interpolate(z_0_BxNxD, jax.random.normal(noise_key, (B, N, D)), t_BxN)

    def estimate(earlier_BxNxD, tokens_BxL=None):
        return denoiser(z_t_BxNxD, t_BxN, state_BxN, earlier_BxNxD, places, memory, tokens_BxL)

    earlier_BxNxD = jnp.zeros_like(z_0_BxNxD)
    if config.self_condition > 0:
        # One draw for the whole batch: the other steps then cost no second evaluation.
        earlier_BxNxD = jax.lax.cond(
            jax.random.bernoulli(self_key, config.self_condition),
            lambda blank: jax.lax.stop_gradient(estimate(blank).clean_BxNxD),
            lambda blank: blank,
            earlier_BxNxD,
        )
    said = estimate(earlier_BxNxD, tokens_BxL if config.token_loss > 0 else None)
    to_write_BxN = (places.segments_BxN > 0) & ~known_BxN
    loss = masked_mean(config.objective.loss(said.clean_BxNxD, z_0_BxNxD, t_BxN), to_write_BxN)
    if config.token_loss == 0:
        return loss, said.tapped_BxNxM
    # Tokens of known text are read off clean latents: the decoder's daily work.
    to_read_BxN = to_write_BxN | (state_BxN == KNOWN)
    to_read_BxL = jnp.repeat(to_read_BxN, denoiser.models.vae.tokens_per_latent, axis=1)
    token_loss = masked_mean(said.scores.loss_BxL, to_read_BxL)
    return loss + config.token_loss * token_loss, said.tapped_BxNxM


def _alignment(recipe: Recipe, params, frozen: Frozen, batch, sites: dict, segments_BxN):
    """How unlike the teacher's features the student's at one of the sites are, once projected."""
    if "teacher" in batch:
        teacher_BxNxH = batch["teacher"]
    else:
        teacher_BxNxH = recipe.teacher.features(frozen.teacher, batch)
    align, features = recipe.models.align, sites[recipe.alignment.site]
    if align is not None:
        features = align.apply({"params": params["align"]}, features)
    return alignment_loss(recipe.alignment.loss, features, teacher_BxNxH, segments_BxN)


def _lay_out(key, segments_BxL, phase: Phase, recipe: Recipe):
    """What is known beforehand, the rows with blocks of one, and where everything stands."""
    segments_BxN, config = segments_of(segments_BxL, recipe.models), recipe.diffusion
    single_B, share = None, config.blocks_of_one
    if phase.only_foretells:
        known_BxN, share = jnp.zeros(segments_BxN.shape, bool), 1.0
    else:
        known_BxN = draw_known(
            key, segments_BxN, positions_of(segments_BxN), config.known, config.block_size or 1
        )
    if share:
        single_key = jax.random.fold_in(key, 1)
        single_B = jax.random.bernoulli(single_key, share, (len(segments_BxL),))
    places = places_of(segments_BxL, recipe.models, config, known_BxN, single_B)
    return known_BxN, single_B, places


def fused_loss(
    params,
    batch: dict,
    stats: LatentStats,
    key,
    step,
    frozen: Frozen = NOTHING_FROZEN,
    ema=None,
    *,
    phase: Phase,
    recipe: Recipe,
):
    """The loss of one (micro)batch.

    Args:
      params: see ``TrainState``.
      batch: ``tokens`` and ``segments`` (B, L), int32; with alignment also what the teacher reads
        (``data.TeacherRows``), or its features ``teacher`` (B, N, H).
      stats: running latent statistics, constants here.
      key: random key.
      step: for the schedules of the weights.
      frozen: see ``Frozen``.
      ema: averaged parameters, for consistency.
      phase: which losses, and who receives gradient.
      recipe: networks and their corruption.

    Returns:
      The weighted sum, and a dict of the parts, ``accuracy`` (of tokens, from noised latents),
      ``logvar`` and the batch's latent moments.
    """
    models = recipe.models
    params = jax.tree.map_with_path(
        lambda p, x: x if group_of(p) in phase.train else jax.lax.stop_gradient(x), params
    )
    params = with_foundation(params, frozen.foundation)
    mask_key, known_key, z_key, rec_key, diff_key = jax.random.split(key, 5)
    near_key, drop_key, state_key = (jax.random.fold_in(diff_key, i) for i in (1, 2, 3))
    tokens_BxL = batch["tokens"]
    known_BxN, single_B, places = _lay_out(known_key, batch["segments"], phase, recipe)

    def encode(tokens):
        return models.text_vae(params, tokens, places, known_BxN, method="encode")

    denoiser = Denoiser.create(models, params, recipe.diffusion, stats, parts=recipe.logit_parts)
    parts = {}
    largest = recipe.autoencoding.token_mask
    masked = largest > 0 and any(map(phase.has, ("reconstruction", "kl", "alignment")))
    posterior = encode(_hide(mask_key, tokens_BxL, largest) if masked else tokens_BxL)
    z_raw_BxNxD = _gaussian(z_key, posterior)
    valid_BxN = places.segments_BxN > 0
    aux = {"moments": _moments(z_raw_BxNxD, valid_BxN)}
    aux["logvar"] = masked_mean(jnp.mean(posterior.logvar_BxNxD, -1), valid_BxN)
    sites = {"encoder": posterior.features_BxNxM, "latents": posterior.mean_BxNxD}
    if phase.has("reconstruction"):
        parts["reconstruction"], aux["accuracy"] = _reconstruction(
            recipe.autoencoding,
            denoiser,
            rec_key,
            tokens_BxL,
            batch["segments"] > 0,
            stats.normalise(z_raw_BxNxD),
            places,
        )
    if phase.has("kl"):
        parts["kl"] = _kl(posterior, valid_BxN)
    if any(map(phase.has, ("diffusion", "next_token", "consistency"))):
        # The denoiser learns the latents of whole texts, not of texts with masked tokens.
        whole = encode(tokens_BxL) if masked else posterior
        z_0_BxNxD = stats.normalise(_gaussian(z_key, whole))
    if phase.has("consistency"):
        average = with_foundation(ema, frozen.foundation)
        average = Denoiser.create(models, average, recipe.diffusion, stats)
        still_BxNxD = jax.lax.stop_gradient(z_0_BxNxD)
        parts["consistency"] = consistency_loss(
            denoiser, average, recipe.consistency, near_key, still_BxNxD, known_BxN, places
        )
    if phase.has("diffusion") or phase.has("next_token"):
        denoiser, memory = replace(denoiser, dropout_key=drop_key), None
        z_0_BxNxD = _share_gradient(z_0_BxNxD, phase, step)
        state_BxN = _states(state_key, known_BxN, recipe.diffusion)
        if recipe.diffusion.block_size:
            clean_BxN = jnp.where(state_BxN == DROPPED, DROPPED, KNOWN)
            clean = denoiser.recall(z_0_BxNxD, clean_BxN, places)
            memory, sites["reading"] = clean.memory, clean.tapped_BxNxM
    if phase.has("next_token"):
        parts["next_token"] = next_token_loss(denoiser, clean.features_BxNxM, tokens_BxL, places)
    if phase.has("diffusion"):
        parts["diffusion"], sites["dit"] = _diffusion(
            denoiser, diff_key, z_0_BxNxD, tokens_BxL, state_BxN, places, memory, single_B
        )
    if phase.has("alignment"):
        parts["alignment"] = _alignment(recipe, params, frozen, batch, sites, places.segments_BxN)
    loss = sum(weight_at(getattr(phase, name), step) * part for name, part in parts.items())
    return loss, {**aux, **{f"loss/{name}": part for name, part in parts.items()}}


def _gradients(state: TrainState, batch, key, frozen, phase, recipe):
    """Loss, parts and gradients, averaged over microbatches inside the jit."""
    gradient = jax.value_and_grad(partial(fused_loss, phase=phase, recipe=recipe), has_aux=True)
    count = recipe.microbatches
    if count == 1:
        return gradient(state.params, batch, state.latents, key, state.step, frozen, state.ema)
    # Rows are dealt out in turn, so that every device keeps its share of each microbatch.
    dealt = jax.tree.map(
        lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch
    )

    def add(total, inputs):
        index, rows = inputs
        key_of_part = jax.random.fold_in(key, index)
        result = gradient(
            state.params, rows, state.latents, key_of_part, state.step, frozen, state.ema
        )
        return jax.tree.map(lambda a, b: a + b / count, total, result), None

    rows = jax.tree.map(lambda x: x[0], dealt)
    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype),
        jax.eval_shape(
            gradient, state.params, rows, state.latents, key, state.step, frozen, state.ema
        ),
    )
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

    Args:
      state: before the step.
      batch: see ``fused_loss``.
      key: the run's key; the step is folded in here.
      frozen: see ``Frozen``.
      phase: see ``Phase``.
      recipe: see ``Recipe``.
      optimizer: from ``optim.make_optimizer``.

    Returns:
      The new state and metrics (scalars). If the loss or a gradient is not finite, only ``step``
      and ``skipped`` change.
    """
    key = jax.random.fold_in(key, state.step)
    (loss, aux), grads = _gradients(state, batch, key, frozen, phase, recipe)
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
        compiler_options=COMPILER_OPTIONS.get(jax.default_backend()),
    )
