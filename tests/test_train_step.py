"""The fused step: its sum, its gradient rules, its bookkeeping, its independence of devices."""

import dataclasses
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldlm_jax.config import load_config, resolve
from ldlm_jax.data.dataset import prepare
from ldlm_jax.data.pipeline import train_batches
from ldlm_jax.diffusion.solvers import Solver
from ldlm_jax.diffusion.time_sampling import draw_quantiles
from ldlm_jax.models.networks import LatentStats, Networks, Projection
from ldlm_jax.models.token_layout import token_layout
from ldlm_jax.optimizer import OptimizerConfig, make_optimizer
from ldlm_jax.parallel.mesh import MeshConfig, make_mesh
from ldlm_jax.parallel.sharding import AxisRules
from ldlm_jax.phases import GROUPS, Phase
from ldlm_jax.sampling.blockwise import generate_tokens
from ldlm_jax.sampling.config import SampleConfig, row_params
from ldlm_jax.sampling.spec import ConditioningBatch, Spec
from ldlm_jax.train_state import group_of, init_state
from ldlm_jax.train_step import fused_loss, train_step
from tests.conftest import IN_BLOCKS, nowhere_zero

WEIGHTS = {"reconstruction": 0.7, "kl": 0.3, "diffusion": 1.3, "token": 0.6, "alignment": 0.5}


@pytest.fixture(scope="module")
def setup(experiment):
    """Recipe with a teacher of width 6, optimizer, parameters that are nowhere zero, a batch."""
    prepared = prepare(experiment.data)
    models = experiment.networks(prepared.tokenizer.vocab_size)
    models = Networks(models.vae, models.dit, Projection(6, "linear"), models.vae.width)
    recipe = experiment.recipe(models)
    optimizer = make_optimizer(experiment.optim, 100)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    state = init_state(models, optimizer, 0, experiment.data.window, mesh, AxisRules())
    params = nowhere_zero(state.params, 0.05)
    state = jax.device_get(state.replace(params=params, ema=params))
    batch = next(train_batches(prepared, experiment.data, 8))
    shape = (8, experiment.data.window, 6)
    batch["teacher"] = np.asarray(jax.random.normal(jax.random.key(5), shape))
    return recipe, optimizer, state, batch


def loss_of(setup, phase, params=None, recipe=None, step=0):
    base, _, state, batch = setup
    loss = jax.jit(fused_loss, static_argnames=("phase", "recipe"))
    params = state.params if params is None else params
    return loss(
        params, batch, state.latents, jax.random.key(1), step, phase=phase, recipe=recipe or base
    )


def run_step(setup, phase, batch=None, recipe=None, state=None):
    base, optimizer, initial, default = setup
    step = compiled_step(phase, recipe or base, optimizer)
    return step(state or initial, batch or default, jax.random.key(1))


@cache
def compiled_step(phase, recipe, optimizer):
    """One function for one program, which several tests share."""
    return jax.jit(partial(train_step, phase=phase, recipe=recipe, optimizer=optimizer))


def changed_groups(before, after):
    return {
        group_of(path)
        for (path, a), b in zip(
            jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True
        )
        if not np.array_equal(a, b)
    }


def test_loss_is_the_weighted_sum_of_its_parts(setup):
    loss, aux = loss_of(setup, Phase(**WEIGHTS))
    expected = 0.0
    for name, weight in WEIGHTS.items():
        alone = {other: float(other == name) for other in WEIGHTS}
        part, _ = loss_of(setup, Phase(**alone))
        chex.assert_trees_all_close(part, aux[f"loss/{name}"], rtol=1e-5)
        expected += weight * float(part)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_each_part_by_hand(setup):
    """KL and alignment from their formulas, diffusion and reconstruction at their known starts."""
    recipe, _, state, batch = setup
    plain = dataclasses.replace(
        recipe,
        autoencoding=dataclasses.replace(
            recipe.autoencoding, token_mask=0.0, decoder_noise=0.0, latent_dropout=0.0
        ),
        diffusion=dataclasses.replace(recipe.diffusion, prefix=0.0, infill=0.0),
    )
    zeroed = jax.tree.map_with_path(
        lambda p, x: (
            jnp.zeros_like(x) if ("output" in str(p) and "dit" in str(p)) or "head" in str(p) else x
        ),
        state.params,
    )
    _, aux = loss_of(setup, Phase(alignment=1.0), zeroed, plain)
    # A head of zeros gives every token the same chance.
    vocabulary = recipe.networks.vae.vocab_size
    assert float(aux["loss/reconstruction"]) == pytest.approx(np.log(vocabulary), rel=1e-4)
    segments, valid = batch["segments"], batch["segments"] > 0
    mean, logvar, features = recipe.networks.vae.apply(
        {"params": zeroed["text_vae"]}, batch["tokens"], token_layout(jnp.asarray(segments)),
        np.zeros(segments.shape, bool), method="encode",
    )  # fmt: skip
    kl = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar)
    assert float(aux["loss/kl"]) == pytest.approx(float(kl.mean(-1)[valid].mean()), rel=1e-4)
    mapped = np.asarray(features @ zeroed["align"]["output"]["kernel"])
    teacher = batch["teacher"] - batch["teacher"][valid].mean(0)
    teacher /= batch["teacher"][valid].std(0)
    cosine = (mapped * teacher).sum(-1) / (
        np.linalg.norm(mapped, axis=-1) * np.linalg.norm(teacher, axis=-1)
    )
    assert float(aux["loss/alignment"]) == pytest.approx(1 - cosine[valid].mean(), rel=1e-3)
    # An output of zeros errs by the latents themselves: mean square plus posterior variance.
    square = (np.asarray(mean) ** 2 + np.exp(logvar)).mean(-1)[valid].mean()
    assert float(aux["loss/diffusion"]) == pytest.approx(square, rel=0.03)


def test_a_zero_weight_removes_the_branch(setup):
    recipe, _, state, batch = setup

    def cost(phase):
        jaxpr = jax.make_jaxpr(partial(fused_loss, phase=phase, recipe=recipe))(
            state.params, batch, state.latents, jax.random.key(1), 0
        )
        return len(str(jaxpr))

    _, aux = loss_of(setup, Phase(diffusion=0.0))
    assert "loss/diffusion" not in aux
    assert cost(Phase(diffusion=0.0)) < 0.7 * cost(Phase())


@pytest.mark.slow
@pytest.mark.parametrize("train", [("dit",), ("encoder", "decoder"), ("decoder",), GROUPS])
def test_only_the_groups_of_a_phase_change(setup, train):
    new, _ = run_step(setup, Phase(train=train, **WEIGHTS))
    assert changed_groups(setup[2].params, new.params) == set(train)


def test_a_readout_trains_the_decoder_alone_on_estimates_at_its_own_times(setup):
    """Tokens are read off what the DiT makes of noise: of more noise, less is read."""
    alone = {"reconstruction": 0.0, "kl": 0.0, "diffusion": 0.0, "train": ("decoder",)}
    clear, noisy = (Phase(token=1.0, time_location=x, **alone) for x in (-20.0, 20.0))
    new, metrics = run_step(setup, clear)
    assert changed_groups(setup[2].params, new.params) == {"decoder"}
    assert "loss/diffusion" not in metrics and metrics["weight/token"] == 1.0
    assert float(metrics["loss"]) == pytest.approx(float(metrics["loss/token"]))
    by_time = [float(loss_of(setup, phase)[0]) for phase in (clear, noisy)]
    assert by_time[0] < by_time[1] - 0.01, by_time


@pytest.mark.slow
def test_momentum_does_not_move_a_frozen_group(setup):
    moving, _ = run_step(setup, Phase(**WEIGHTS))
    frozen, _ = run_step(setup, Phase(train=("decoder",), **WEIGHTS), state=moving)
    assert changed_groups(moving.params, frozen.params) == {"decoder"}


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_diffusion_gradient_reaches_the_encoder_by_its_share(setup, share):
    def encoder_gradient(phase):
        gradient = jax.grad(lambda p: loss_of(setup, phase, p)[0])(setup[2].params)
        return gradient["text_vae"]["encoder"]

    only = {"reconstruction": 0.0, "kl": 0.0}
    full = encoder_gradient(Phase(encoder_gradient=1.0, **only))
    part = encoder_gradient(Phase(encoder_gradient=share, **only))
    assert float(jnp.abs(full["mean"]["kernel"]).max()) > 1e-6
    chex.assert_trees_all_close(part, jax.tree.map(lambda g: share * g, full), atol=1e-6, rtol=1e-3)


def test_scheduled_weights_follow_the_step(setup):
    phase = Phase(kl=((0, 0.0), (10, 1.0)), reconstruction=0.0, diffusion=0.0)
    full, _ = loss_of(setup, Phase(kl=1.0, reconstruction=0.0, diffusion=0.0))
    for step, share in ((0, 0.0), (5, 0.5), (10, 1.0), (50, 1.0)):
        assert float(loss_of(setup, phase, step=step)[0]) == pytest.approx(share * float(full))


@pytest.mark.slow
def test_the_fused_step_trains_with_dropout(setup):
    recipe, _, _, _ = setup
    networks = dataclasses.replace(recipe.networks, dit=recipe.networks.dit.clone(dropout=0.5))
    dropping = dataclasses.replace(recipe, networks=networks)
    only = Phase(reconstruction=0.0, kl=0.0, diffusion=1.0, alignment=0.0)
    assert abs(float(loss_of(setup, only)[0] - loss_of(setup, only, recipe=dropping)[0])) > 1e-3
    rest = Phase(reconstruction=1.0, kl=1.0, diffusion=0.0, alignment=0.0)
    assert float(loss_of(setup, rest)[0]) == float(loss_of(setup, rest, recipe=dropping)[0])


def test_times_are_drawn_by_block_or_by_position():
    def draw(*args):
        return np.asarray(draw_quantiles(jax.random.key(0), (64, 12), *args))

    whole, blocks = draw(0, 0.0), draw(4, 0.0).reshape(64, 3, 4)
    assert (whole == whole[:, :1]).all() and len(np.unique(whole[:, 0])) == 64
    assert (blocks == blocks[..., :1]).all() and len(np.unique(blocks[..., 0])) == 64 * 3
    own = draw(4, 0.5).reshape(64, 3, 4)
    alone = (own != own[..., :1]).any(axis=(1, 2)).mean()
    assert 0.3 < alone < 0.7
    single = draw(4, 0.0, jnp.arange(64) < 16).reshape(64, 3, 4)
    assert (single != single[..., :1]).any(axis=(1, 2)).tolist() == [True] * 16 + [False] * 48
    for times in (whole, blocks, own):
        np.testing.assert_allclose(
            np.quantile(times, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.1
        )


def test_non_finite_steps_are_skipped_and_counted(setup):
    batch = {**setup[3], "teacher": np.full_like(setup[3]["teacher"], np.nan)}
    new, metrics = run_step(setup, Phase(**WEIGHTS), batch)
    assert int(new.step) == 1 and int(new.skipped) == 1 and int(metrics["skipped"]) == 1
    chex.assert_trees_all_equal(new.replace(step=0, skipped=0), setup[2].replace(step=0, skipped=0))
    good, _ = run_step(setup, Phase(**WEIGHTS), state=new)
    assert int(good.skipped) == 1 and changed_groups(new.params, good.params) == set(GROUPS)


@pytest.mark.slow
def test_microbatches_average_to_the_whole(setup):
    recipe, _, _, batch = setup
    # Without noise the halves of a doubled batch are alike, and so are their losses.
    plain = dataclasses.replace(
        recipe,
        autoencoding=dataclasses.replace(
            recipe.autoencoding, token_mask=0.0, decoder_noise=0.0, latent_dropout=0.0
        ),
    )
    phase = Phase(diffusion=0.0, alignment=1.0)
    doubled = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), batch)
    whole, whole_metrics = run_step(setup, phase, doubled, plain)
    parts, metrics = run_step(setup, phase, doubled, dataclasses.replace(plain, microbatches=2))
    # Posterior noise differs between the two, at a standard deviation of 0.13.
    assert float(metrics["loss"]) == pytest.approx(float(whole_metrics["loss"]), rel=0.02)
    assert float(metrics["grad_norm"]) == pytest.approx(float(whole_metrics["grad_norm"]), rel=0.1)
    chex.assert_trees_all_close(parts.latents.mean_D, whole.latents.mean_D, atol=0.02)


def test_average_and_statistics_follow_the_parameters(setup):
    new, _ = run_step(setup, Phase(**WEIGHTS))
    kernel = ("dit", "input", "kernel")

    def at(tree):
        for key in kernel:
            tree = tree[key]
        return np.asarray(tree)

    # At step 0 the average takes 90 % of the new parameters.
    expected = 0.1 * at(setup[2].ema) + 0.9 * at(new.params)
    np.testing.assert_allclose(at(new.ema), expected, rtol=1e-5)


def test_latent_statistics_normalise():
    z = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (64, 32, 4))
    running = LatentStats.create(4)
    for _ in range(3):
        running = running.update(z.mean((0, 1)), (z**2).mean((0, 1)))
    normal = running.normalise(z)
    np.testing.assert_allclose(normal.mean((0, 1)), 0, atol=0.02)
    np.testing.assert_allclose(normal.std((0, 1)), 1, atol=0.02)


def test_clipping_bounds_the_gradient():
    optimizer = make_optimizer(OptimizerConfig(name="adamw", clip_norm=1.0), 10)
    clip = optimizer.update({"w": jnp.full((4, 4), 100.0)}, optimizer.init({"w": jnp.ones((4, 4))}),
                            {"w": jnp.ones((4, 4))})  # fmt: skip
    assert np.isfinite(clip[0]["w"]).all()
    moment = jax.tree.leaves(clip[1])
    norms = [float(jnp.linalg.norm(m)) for m in moment if m.shape == (4, 4)]
    assert max(norms) == pytest.approx(0.1, rel=1e-3)  # (1 - beta1) times a gradient of norm 1


@pytest.mark.parametrize(
    "changes",
    [
        ["text_vae.tokens_per_latent=2", "data.pad_to_multiple=2", "dit.conditioning=adaln"],
        ["text_vae.decoder_layers=0"],
        [*IN_BLOCKS, "diffusion.suffix=0.1", "text_vae.encoder_layers=0"],
        [
            "diffusion.prediction=v",
            "diffusion.loss_space=v",
            "text_vae.remat=full",
            "optim.name=muon",
            "dit.dtype=bfloat16",
            "text_vae.dtype=bfloat16",
        ],
    ],
    ids=lambda changes: changes[0],
)
@pytest.mark.slow
def test_variants_learn(overrides, changes):
    """Every variant lowers its loss on one batch within a few steps."""
    experiment = resolve(load_config("configs/debug.py", [*overrides, *changes]))
    prepared = prepare(experiment.data)
    models = experiment.networks(prepared.tokenizer.vocab_size)
    recipe, optimizer = experiment.recipe(models), make_optimizer(experiment.optim, 100)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    state = init_state(models, optimizer, 0, experiment.data.window, mesh, AxisRules())
    batch = next(train_batches(prepared, experiment.data, 8))
    step = jax.jit(partial(train_step, phase=Phase(token=0.5), recipe=recipe, optimizer=optimizer))
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch, jax.random.key(1))
        losses.append(float(metrics["loss"]))
    assert int(state.skipped) == 0
    assert np.mean(losses[-5:]) < 0.85 * losses[0]
    tokens = write(models, experiment, state, window=experiment.data.window)
    chex.assert_shape(tokens, (2, experiment.data.window))


def write(models, experiment, state, window):
    page = ConditioningBatch.blank(2, window, models.vae.tokens_per_latent)
    dials = row_params(jax.random.split(jax.random.key(0), 2), [SampleConfig(steps=2)] * 2)
    spec = Spec(models, experiment.diffusion, Solver("euler"), steps=2)
    return generate_tokens(state.ema, state.latents, page, dials, spec=spec).tokens_BxL
