"""The fused train step: reconstruction, KL, diffusion and alignment in one jitted function.

    loss = w_rec CE + w_kl KL + w_diff |z_0 - z_0^|^2 + w_align (1 - cos)

CE and KL are in autoencoding.py, the last in alignment.py. Models of blocks may add next tokens
(next_token.py).

Shape letters: B rows, L tokens, N latents, D latent channels, M width, H features.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldlm_jax.diffusion import schedule as path
from ldlm_jax.diffusion.conditioning import draw_known
from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.diffusion.objective import masked_mean
from ldlm_jax.diffusion.time_sampling import draw_progress
from ldlm_jax.losses.alignment import AlignmentConfig, alignment_loss
from ldlm_jax.losses.autoencoder import (
    AutoencodingConfig,
    draw_latents,
    hide_tokens,
    kl_loss,
    reconstruction_loss,
)
from ldlm_jax.losses.next_token import next_token_loss
from ldlm_jax.models.denoiser import Denoiser, places_of, segments_of
from ldlm_jax.models.dit import DROPPED, KNOWN, UNKNOWN
from ldlm_jax.models.lowering import COMPILER_OPTIONS
from ldlm_jax.models.token_layout import Places, positions_of
from ldlm_jax.optimizer import OptimConfig, ema_step_size
from ldlm_jax.phases import LOSSES, Phase, weight_at
from ldlm_jax.teachers.teacher import PretrainedTeacher
from ldlm_jax.train_state import LatentStats, Models, TrainState, group_of, with_foundation


@dataclass(frozen=True)
class Recipe:
    """Everything static that the step depends on, but the phase."""

    models: Models
    autoencoding: AutoencodingConfig
    diffusion: DiffusionConfig
    optim: OptimConfig
    alignment: AlignmentConfig = AlignmentConfig()
    teacher: PretrainedTeacher | None = None
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


class Text(NamedTuple):
    """A batch laid out.

    Attributes:
      tokens_BxL: the tokens.
      valid_BxL: which of them are text.
      known_BxN: latents that are given beforehand.
      single_B: rows with blocks of one, or None for no such rows.
      places: where each latent stands.
    """

    tokens_BxL: jax.Array
    valid_BxL: jax.Array
    known_BxN: jax.Array
    single_B: jax.Array | None
    places: Places

    @property
    def valid_BxN(self) -> jax.Array:
        """Which latents are of text."""
        return self.places.segments_BxN > 0


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


def _states(key, known_BxN, config: DiffusionConfig):
    """What the DiT is told of each latent: what some rows know is hidden, for guidance."""
    dropped_Bx1 = jax.random.bernoulli(key, config.condition_dropout, (len(known_BxN), 1))
    return jnp.where(known_BxN, jnp.where(dropped_Bx1, DROPPED, KNOWN), UNKNOWN)


def _diffusion(denoiser: Denoiser, key, text: Text, z_0_BxNxD, state_BxN, memory):
    """Denoising error over the positions to be written, and what came out of the DiT's tap."""
    config, known_BxN = denoiser.config, state_BxN != UNKNOWN
    time_key, noise_key, self_key = jax.random.split(key, 3)
    B, N, D = z_0_BxNxD.shape
    progress_BxN = draw_progress(time_key, B, N, config.block_size, config.own_times, text.single_B)
    t_BxN = jnp.where(known_BxN, 0.0, config.law(D).quantile(progress_BxN))
    z_t_BxNxD = path.interpolate(z_0_BxNxD, jax.random.normal(noise_key, (B, N, D)), t_BxN)

    def estimate(earlier_BxNxD, tokens_BxL=None):
        return denoiser(z_t_BxNxD, t_BxN, state_BxN, earlier_BxNxD, text.places, memory, tokens_BxL)

    earlier_BxNxD = jnp.zeros_like(z_0_BxNxD)
    if config.self_condition > 0:
        # One draw for the whole batch: the other steps then cost no second evaluation.
        earlier_BxNxD = jax.lax.cond(
            jax.random.bernoulli(self_key, config.self_condition),
            lambda blank: jax.lax.stop_gradient(estimate(blank).clean_BxNxD),
            lambda blank: blank,
            earlier_BxNxD,
        )
    said = estimate(earlier_BxNxD, text.tokens_BxL if config.token_loss > 0 else None)
    to_write_BxN = text.valid_BxN & ~known_BxN
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
    features = sites[recipe.alignment.site]
    features = recipe.models.align.apply({"params": params["align"]}, features)
    return alignment_loss(features, teacher_BxNxH, segments_BxN)


def _lay_out(key, batch: dict, phase: Phase, recipe: Recipe) -> Text:
    """Draw what is known beforehand and which rows have blocks of one."""
    segments_BxL = batch["segments"]
    segments_BxN, config = segments_of(segments_BxL, recipe.models), recipe.diffusion
    single_B, share = None, config.blocks_of_one
    if phase.only_foretells:
        known_BxN, share = jnp.zeros(segments_BxN.shape, bool), 1.0
    else:
        known_BxN = draw_known(key, segments_BxN, positions_of(segments_BxN), config.known)
    if share:
        single_key = jax.random.fold_in(key, 1)
        single_B = jax.random.bernoulli(single_key, share, (len(segments_BxL),))
    places = places_of(segments_BxL, recipe.models, config, known_BxN, single_B)
    return Text(batch["tokens"], segments_BxL > 0, known_BxN, single_B, places)


def _learning(params, phase: Phase, foundation):
    """Parameters of which the phase's alone receive gradient, and the foundation."""
    params = jax.tree.map_with_path(
        lambda p, x: x if group_of(p) in phase.train else jax.lax.stop_gradient(x), params
    )
    return with_foundation(params, foundation)


def _autoencoding(keys, denoiser: Denoiser, text: Text, posterior, phase: Phase, recipe: Recipe):
    """Losses of the autoencoder alone, and what else is known of it."""
    z_key, rec_key = keys
    z_raw_BxNxD = draw_latents(z_key, posterior)
    parts, aux = {}, {"moments": _moments(z_raw_BxNxD, text.valid_BxN)}
    aux["logvar"] = masked_mean(jnp.mean(posterior.logvar_BxNxD, -1), text.valid_BxN)
    if phase.has("reconstruction"):
        parts["reconstruction"], aux["accuracy"] = reconstruction_loss(
            recipe.autoencoding, denoiser, rec_key, denoiser.latents.normalise(z_raw_BxNxD),
            text.tokens_BxL, text.valid_BxL, text.places,
        )  # fmt: skip
    if phase.has("kl"):
        parts["kl"] = kl_loss(posterior, text.valid_BxN)
    return parts, aux


def _denoising(key, denoiser: Denoiser, text: Text, z_0_BxNxD, step, phase: Phase, recipe: Recipe):
    """Losses of reading clean latents and of denoising, and what they offer for alignment."""
    drop_key, state_key = (jax.random.fold_in(key, i) for i in (2, 3))
    parts, sites, places = {}, {}, text.places
    denoiser, memory = replace(denoiser, dropout_key=drop_key), None
    z_0_BxNxD = _share_gradient(z_0_BxNxD, phase, step)
    state_BxN = _states(state_key, text.known_BxN, recipe.diffusion)
    if recipe.diffusion.block_size:
        clean_BxN = jnp.where(state_BxN == DROPPED, DROPPED, KNOWN)
        clean = denoiser.recall(z_0_BxNxD, clean_BxN, places)
        memory, sites["reading"] = clean.memory, clean.tapped_BxNxM
    if phase.has("next_token"):
        parts["next_token"] = next_token_loss(
            denoiser, clean.features_BxNxM, text.tokens_BxL, places
        )
    if phase.has("diffusion"):
        parts["diffusion"], sites["dit"] = _diffusion(
            denoiser, key, text, z_0_BxNxD, state_BxN, memory
        )
    return parts, sites


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
        (``data.TeacherRows``), or its features ``teacher`` (B, N, H).
      stats: running latent statistics, constants here.
      key: random key.
      step: for the schedules of the weights.
      frozen: see ``Frozen``.
      phase: which losses, and who receives gradient.
      recipe: networks and their corruption.

    Returns:
      The weighted sum, and a dict of the parts, ``accuracy`` (of tokens, from noised latents),
      ``logvar`` and the batch's latent moments.
    """
    mask_key, known_key, z_key, rec_key, diff_key = jax.random.split(key, 5)
    params = _learning(params, phase, frozen.foundation)
    text = _lay_out(known_key, batch, phase, recipe)
    denoiser = Denoiser.create(
        recipe.models, params, recipe.diffusion, stats, parts=recipe.logit_parts
    )

    def encode(tokens_BxL):
        return recipe.models.text_vae(
            params, tokens_BxL, text.places, text.known_BxN, method="encode"
        )

    largest, tokens_BxL = recipe.autoencoding.token_mask, text.tokens_BxL
    masked = largest > 0 and any(map(phase.has, ("reconstruction", "kl", "alignment")))
    posterior = encode(hide_tokens(mask_key, tokens_BxL, largest) if masked else tokens_BxL)
    parts, aux = _autoencoding((z_key, rec_key), denoiser, text, posterior, phase, recipe)
    sites = {"encoder": posterior.features_BxNxM, "latents": posterior.mean_BxNxD}
    if phase.has("diffusion") or phase.has("next_token"):
        # The denoiser learns the latents of whole texts, not of texts with masked tokens.
        whole = encode(tokens_BxL) if masked else posterior
        z_0_BxNxD = stats.normalise(draw_latents(z_key, whole))
    if phase.has("diffusion") or phase.has("next_token"):
        of_denoiser, more = _denoising(diff_key, denoiser, text, z_0_BxNxD, step, phase, recipe)
        parts, sites = parts | of_denoiser, sites | more
    if phase.has("alignment"):
        parts["alignment"] = _alignment(
            recipe, params, frozen, batch, sites, text.places.segments_BxN
        )
    loss = sum(weight_at(getattr(phase, name), step) * part for name, part in parts.items())
    return loss, {**aux, **{f"loss/{name}": part for name, part in parts.items()}}


def _gradients(state: TrainState, batch, key, frozen, phase, recipe):
    """Loss, parts and gradients, averaged over microbatches inside the jit."""
    gradient = jax.value_and_grad(partial(fused_loss, phase=phase, recipe=recipe), has_aux=True)
    count = recipe.microbatches
    if count == 1:
        return gradient(state.params, batch, state.latents, key, state.step, frozen)
    # Rows are dealt out in turn, so that every device keeps its share of each microbatch.
    dealt = jax.tree.map(
        lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch
    )

    def add(total, inputs):
        index, rows = inputs
        key_of_part = jax.random.fold_in(key, index)
        result = gradient(state.params, rows, state.latents, key_of_part, state.step, frozen)
        return jax.tree.map(lambda a, b: a + b / count, total, result), None

    rows = jax.tree.map(lambda x: x[0], dealt)
    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype),
        jax.eval_shape(gradient, state.params, rows, state.latents, key, state.step, frozen),
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
