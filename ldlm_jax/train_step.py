"""The fused train step: reconstruction, KL, diffusion and alignment in one jitted function.

    loss = w_rec CE + w_kl KL + w_diff |z_0 - z_0^|^2 + w_align (1 - cos)

Shape letters: B rows, L tokens, N latents, D latent channels, M width, V vocabulary, H features.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax

from ldlm_jax.data.tokenizer import MASK
from ldlm_jax.diffusion import path
from ldlm_jax.diffusion.known import draw_known, places_to_write, positions_in_segments
from ldlm_jax.diffusion.objective import Objective
from ldlm_jax.diffusion.time import LogitNormal, local_progress, stratified
from ldlm_jax.errors import UserError
from ldlm_jax.models.dit import DROPPED, KNOWN, UNKNOWN, Denoised
from ldlm_jax.optim import OptimConfig, ema_step_size
from ldlm_jax.phases import LOSSES, Phase, weight_at
from ldlm_jax.train_state import LatentStats, Models, TrainState, group_of


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
        _check_shares("autoencoding", self, ("token_mask", "latent_dropout"))
        if self.decoder_noise < 0:
            raise UserError(f"autoencoding.decoder_noise = {self.decoder_noise}: at least 0.")


@dataclass(frozen=True)
class DiffusionConfig:
    """How the denoiser is trained.

    Attributes:
      prediction: ``"x"`` or ``"v"``, see ``diffusion.objective``.
      loss_space: ``"x"`` or ``"v"``.
      time_location: location of the logit-normal law of times; None takes the fit for the latent
        width (``LogitNormal.for_channels``).
      time_scale: its scale.
      self_condition: share of steps in which the denoiser is given its own earlier estimate
        (Chen et al. 2023, "Analog Bits").
      prefix: share of documents trained as continuations of a known prefix.
      infill: share of documents trained as the filling of one hole.
      condition_dropout: share of documents whose known part is hidden, for guidance.
      ramps: waves of noise from the beginning of a text to its end (``time.local_progress``); each
        row draws one of these. ``(0.0,)`` denoises all positions together.
      token_loss: weight, within the diffusion loss, of the cross-entropy of the tokens decoded
        from the denoiser's estimate. It tells the denoiser which errors change the text, and
        the decoder (where it trains) what the denoiser's estimates look like.
    """

    prediction: str = "x"
    loss_space: str = "x"
    time_location: float | None = None
    time_scale: float = 1.0
    self_condition: float = 0.5
    prefix: float = 0.2
    infill: float = 0.1
    condition_dropout: float = 0.1
    ramps: tuple[float, ...] = (0.0,)
    token_loss: float = 0.0

    def __post_init__(self):
        for name in ("prediction", "loss_space"):
            if getattr(self, name) not in ("x", "v"):
                raise UserError(f"diffusion.{name} = {getattr(self, name)!r}: choose 'x' or 'v'.")
        shares = ("self_condition", "prefix", "infill", "condition_dropout")
        _check_shares("diffusion", self, shares)
        if self.prefix + self.infill > 1:
            raise UserError("diffusion.prefix + diffusion.infill must not exceed 1.")
        if not self.ramps or min(self.ramps) < 0:
            raise UserError(f"diffusion.ramps = {self.ramps}: give at least one, none negative.")
        if self.token_loss < 0:
            raise UserError(f"diffusion.token_loss = {self.token_loss}: at least 0.")
        if self.time_scale <= 0:
            raise UserError(f"diffusion.time_scale = {self.time_scale}: must be positive.")

    @property
    def objective(self) -> Objective:
        """Prediction and loss."""
        return Objective(self.prediction, self.loss_space)

    def law(self, channels: int) -> LogitNormal:
        """Law of times for latents of that width."""
        if self.time_location is None:
            return LogitNormal.for_channels(channels, self.time_scale)
        return LogitNormal(self.time_location, self.time_scale)


def _check_shares(section: str, config, names: tuple[str, ...]) -> None:
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"{section}.{name} = {getattr(config, name)}: must be in [0, 1].")


@dataclass(frozen=True)
class Recipe:
    """Everything static that the step depends on, but the phase."""

    models: Models
    autoencoding: AutoencodingConfig
    diffusion: DiffusionConfig
    optim: OptimConfig
    microbatches: int = 1


def _mean(value, where):
    """Mean over true places; 0 where there is none."""
    where = where.astype(jnp.float32)
    return jnp.sum(value * where) / jnp.maximum(jnp.sum(where), 1.0)


def denoise(
    models: Models,
    params,
    config: DiffusionConfig,
    z_BxNxD,
    t_BxN,
    state_BxN,
    estimate_BxNxD,
    context,
) -> Denoised:
    """One evaluation of the DiT: estimate of the clean latents (fp32), and features."""
    output_BxNxD, features_BxNxM = models.dit.apply(
        {"params": params["dit"]}, z_BxNxD, t_BxN, state_BxN, estimate_BxNxD, *context
    )
    return Denoised(config.objective.clean(output_BxNxD, z_BxNxD, t_BxN), features_BxNxM)


def token_logits(models: Models, params, z_BxNxD, sigma_BxN, context) -> jax.Array:
    """Logits (B, L, V), fp32, from latents with additive noise of standard deviation ``sigma``.

    A decoder with a trunk of its own is not told sigma; one that shares the DiT's is, as the time
    at which the path has that ratio of noise to data (path.py, equation 1): t = sigma/(1 + sigma).
    """
    inputs = z_BxNxD
    if models.vae.decoder_layers == 0:
        t_BxN = sigma_BxN / (1 + sigma_BxN)
        scaled_BxNxD = (1 - t_BxN)[..., None] * z_BxNxD
        known_BxN = jnp.full(t_BxN.shape, KNOWN)
        _, inputs = models.dit.apply(
            {"params": params["dit"]}, scaled_BxNxD, t_BxN, known_BxN,
            jnp.zeros_like(z_BxNxD), *context,
        )  # fmt: skip
    return _read_tokens(models, params, inputs, context)


def _read_tokens(models: Models, params, inputs, context) -> jax.Array:
    logits_BxLxV = models.vae.apply(
        {"params": params["text_vae"]}, inputs, *context, method="decode"
    )
    return logits_BxLxV.astype(jnp.float32)


def _gaussian(key, posterior):
    noise = jax.random.normal(key, posterior.mean_BxNxD.shape)
    return posterior.mean_BxNxD + jnp.exp(0.5 * posterior.logvar_BxNxD) * noise


def _reconstruction(recipe: Recipe, params, key, tokens_BxL, valid_BxL, z_BxNxD, context):
    """Cross-entropy of all tokens given noised latents, and the share of tokens got right."""
    config = recipe.autoencoding
    level_key, noise_key, drop_key = jax.random.split(key, 3)
    shape = z_BxNxD.shape[:2]
    sigma_BxN = config.decoder_noise * jax.random.uniform(level_key, shape)
    z_BxNxD = z_BxNxD + sigma_BxN[..., None] * jax.random.normal(noise_key, z_BxNxD.shape)
    kept_BxN = jax.random.bernoulli(drop_key, 1 - config.latent_dropout, shape)
    z_BxNxD = jnp.where(kept_BxN[..., None], z_BxNxD, 0.0)
    logits_BxLxV = token_logits(recipe.models, params, z_BxNxD, sigma_BxN, context)
    loss_BxL = optax.softmax_cross_entropy_with_integer_labels(logits_BxLxV, tokens_BxL)
    hit_BxL = jnp.argmax(logits_BxLxV, axis=-1) == tokens_BxL
    return _mean(loss_BxL, valid_BxL), _mean(hit_BxL, valid_BxL)


def _diffusion(recipe: Recipe, params, key, z_0_BxNxD, tokens_BxL, known_BxN, context):
    """Denoising error over the positions to be written."""
    config, models = recipe.diffusion, recipe.models
    time_key, ramp_key, noise_key, drop_key, self_key = jax.random.split(key, 5)
    B, N, D = z_0_BxNxD.shape
    segments_BxN = context[0]
    ramp_B = jax.random.choice(ramp_key, jnp.array(config.ramps), (B,))
    progress_BxN = local_progress(
        stratified(time_key, B)[:, None], places_to_write(segments_BxN, known_BxN), ramp_B[:, None]
    )
    t_BxN = jnp.where(known_BxN, 0.0, config.law(D).quantile(progress_BxN))
    z_t_BxNxD = path.interpolate(z_0_BxNxD, jax.random.normal(noise_key, (B, N, D)), t_BxN)
    dropped_Bx1 = jax.random.bernoulli(drop_key, config.condition_dropout, (B, 1))
    state_BxN = jnp.where(known_BxN, jnp.where(dropped_Bx1, DROPPED, KNOWN), UNKNOWN)

    def estimate(earlier_BxNxD):
        return denoise(models, params, config, z_t_BxNxD, t_BxN, state_BxN, earlier_BxNxD, context)

    # One draw for the whole batch: half of the steps then cost no second evaluation.
    earlier_BxNxD = jax.lax.cond(
        jax.random.bernoulli(self_key, config.self_condition),
        lambda: jax.lax.stop_gradient(estimate(jnp.zeros_like(z_0_BxNxD)).output_BxNxD),
        lambda: jnp.zeros_like(z_0_BxNxD),
    )
    clean_BxNxD, features_BxNxM = estimate(earlier_BxNxD)
    # What the wave has passed or not reached yet has nothing to learn.
    moving_BxN = (progress_BxN > 0) & (progress_BxN < 1)
    to_write_BxN = (segments_BxN > 0) & ~known_BxN & moving_BxN
    loss = _mean(config.objective.loss(clean_BxNxD, z_0_BxNxD, t_BxN), to_write_BxN)
    if config.token_loss == 0:
        return loss
    inputs = clean_BxNxD if models.vae.decoder_layers > 0 else features_BxNxM
    logits_BxLxV = _read_tokens(models, params, inputs, context)
    token_loss_BxL = optax.softmax_cross_entropy_with_integer_labels(logits_BxLxV, tokens_BxL)
    # Tokens of known text are read off clean latents: the decoder's daily work.
    to_read_BxN = to_write_BxN | (state_BxN == KNOWN)
    to_read_BxL = jnp.repeat(to_read_BxN, models.vae.tokens_per_latent, axis=1)
    return loss + config.token_loss * _mean(token_loss_BxL, to_read_BxL)


def _alignment(recipe: Recipe, params, features_BxNxM, teacher_BxNxH, segments_BxN):
    """1 - cosine between mapped encoder features and the teacher's (Yu et al. 2024, REPA)."""
    mapped_BxNxH = recipe.models.align.apply({"params": params["align"]}, features_BxNxM)
    cosine_BxN = optax.cosine_similarity(
        mapped_BxNxH.astype(jnp.float32), teacher_BxNxH.astype(jnp.float32), epsilon=1e-6
    )
    return _mean(1 - cosine_BxN, segments_BxN > 0)


def fused_loss(params, batch: dict, stats: LatentStats, key, step, *, phase: Phase, recipe: Recipe):
    """The loss of one (micro)batch.

    Args:
      params: see ``TrainState``.
      batch: ``tokens`` and ``segments`` (B, L), int32; with alignment also ``teacher`` (B, N, H).
      stats: running latent statistics, constants here.
      key: random key.
      step: for the schedules of the weights.
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
    mask_key, share_key, known_key, z_key, rec_key, diff_key = jax.random.split(key, 6)
    tokens_BxL = batch["tokens"]
    segments_BxN = batch["segments"][:, :: models.vae.tokens_per_latent]
    positions_BxN = positions_in_segments(segments_BxN)
    context = (segments_BxN, positions_BxN)
    known_BxN = draw_known(
        known_key, *context, prefix=recipe.diffusion.prefix, infill=recipe.diffusion.infill
    )

    def encode(tokens):
        return models.vae.apply(
            {"params": params["text_vae"]}, tokens, *context, known_BxN, method="encode"
        )

    parts = {}
    shape = tokens_BxL.shape
    share_Bx1 = recipe.autoencoding.token_mask * jax.random.uniform(share_key, (shape[0], 1))
    hidden_BxL = jax.random.uniform(mask_key, shape) < share_Bx1
    posterior = encode(jnp.where(hidden_BxL, MASK, tokens_BxL))
    z_raw_BxNxD = _gaussian(z_key, posterior)
    valid_BxN = segments_BxN > 0
    moments = [
        jnp.sum(jnp.where(valid_BxN[..., None], m, 0.0), (0, 1)) / jnp.maximum(valid_BxN.sum(), 1)
        for m in (z_raw_BxNxD, jnp.square(z_raw_BxNxD))
    ]
    aux = {"moments": jax.lax.stop_gradient(moments)}
    aux["logvar"] = _mean(jnp.mean(posterior.logvar_BxNxD, -1), valid_BxN)
    if phase.has("reconstruction"):
        parts["reconstruction"], aux["accuracy"] = _reconstruction(
            recipe,
            params,
            rec_key,
            tokens_BxL,
            batch["segments"] > 0,
            stats.normalise(z_raw_BxNxD),
            context,
        )
    if phase.has("kl"):
        mean, logvar = posterior.mean_BxNxD, posterior.logvar_BxNxD
        kl_BxN = 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1 - logvar, axis=-1)
        parts["kl"] = _mean(kl_BxN, valid_BxN)
    if phase.has("alignment"):
        parts["alignment"] = _alignment(
            recipe, params, posterior.features_BxNxM, batch["teacher"], segments_BxN
        )
    if phase.has("diffusion"):
        # The denoiser learns the latents of whole texts, not of texts with masked tokens.
        whole = encode(tokens_BxL) if recipe.autoencoding.token_mask > 0 else posterior
        z_0_BxNxD = stats.normalise(_gaussian(z_key, whole))
        if phase.has("encoder_gradient"):
            share = weight_at(phase.encoder_gradient, step)
            z_0_BxNxD = share * z_0_BxNxD + (1 - share) * jax.lax.stop_gradient(z_0_BxNxD)
        else:
            z_0_BxNxD = jax.lax.stop_gradient(z_0_BxNxD)
        parts["diffusion"] = _diffusion(
            recipe, params, diff_key, z_0_BxNxD, tokens_BxL, known_BxN, context
        )
    loss = sum(weight_at(getattr(phase, name), step) * part for name, part in parts.items())
    return loss, {**aux, **{f"loss/{name}": part for name, part in parts.items()}}


def _gradients(state: TrainState, batch, key, phase, recipe):
    """Loss, parts and gradients, averaged over microbatches inside the jit."""
    gradient = jax.value_and_grad(partial(fused_loss, phase=phase, recipe=recipe), has_aux=True)
    count = recipe.microbatches
    if count == 1:
        return gradient(state.params, batch, state.latents, key, state.step)
    # Rows are dealt out in turn, so that every device keeps its share of each microbatch.
    dealt = jax.tree.map(
        lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch
    )

    def add(total, inputs):
        index, rows = inputs
        result = gradient(
            state.params, rows, state.latents, jax.random.fold_in(key, index), state.step
        )
        return jax.tree.map(lambda a, b: a + b / count, total, result), None

    rows = jax.tree.map(lambda x: x[0], dealt)
    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype),
        jax.eval_shape(gradient, state.params, rows, state.latents, key, state.step),
    )
    return jax.lax.scan(add, zeros, (jnp.arange(count), dealt))[0]


def train_step(state: TrainState, batch: dict, key, *, phase: Phase, recipe: Recipe, optimizer):
    """One step of training; jit it with ``state`` donated and the keywords static.

    Args:
      state: before the step.
      batch: see ``fused_loss``.
      key: the run's key; the step is folded in here.
      phase: see ``Phase``.
      recipe: see ``Recipe``.
      optimizer: from ``optim.make_optimizer``.

    Returns:
      The new state and metrics (scalars). If the loss or a gradient is not finite, only ``step``
      and ``skipped`` change.
    """
    key = jax.random.fold_in(key, state.step)
    (loss, aux), grads = _gradients(state, batch, key, phase, recipe)
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
