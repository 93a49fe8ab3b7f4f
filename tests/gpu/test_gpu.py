"""What an NVIDIA GPU computes is what a CPU computes: `make test-gpu`; skipped where there is none.

Proved on CPUs, with a CPU in place of the GPU; run in part on an H100, see
``experiments/accelerator``.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.baselines.sampling import write_left_to_right
from experiments.baselines.token_transformer import TokenTransformer
from ldlm_jax.checkpoint import Checkpoints
from ldlm_jax.config import load_config, resolve
from ldlm_jax.data.dataset import prepare
from ldlm_jax.data.pipeline import train_batches
from ldlm_jax.diffusion.solvers import SOLVERS
from ldlm_jax.models.attention import attend
from ldlm_jax.models.masks import block_causal
from ldlm_jax.models.token_layout import token_layout
from ldlm_jax.optimizer import make_optimizer
from ldlm_jax.parallel.mesh import MeshConfig, make_mesh
from ldlm_jax.parallel.sharding import AxisRules, use_sharding
from ldlm_jax.sampling.blockwise import generate_tokens
from ldlm_jax.sampling.generate import generate
from ldlm_jax.sampling.generator import Generator
from ldlm_jax.train_state import abstract_state, init_state
from ldlm_jax.train_step import compiled_step, fused_loss
from tests.conftest import DEMO

PLATFORM = "gpu"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != PLATFORM, reason="there is no GPU"),
]


class Setup:
    """A tiny experiment on one device."""

    def __init__(self, overrides, *changes):
        self.experiment = resolve(load_config("configs/debug.py", [*overrides, *changes]))
        prepared = prepare(self.experiment.data)
        self.tokenizer, self.lengths = prepared.tokenizer, tuple(prepared.stats["lengths"])
        self.networks = self.experiment.networks(self.tokenizer.vocab_size)
        self.recipe = self.experiment.recipe(self.networks)
        self.optimizer = make_optimizer(self.experiment.optim, 100)
        self.mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
        self.window = self.experiment.data.window
        batches = train_batches(prepared, self.experiment.data, 8)
        self.batches = [next(batches) for _ in range(3)]
        self.phase = self.experiment.phases[-1]
        self.step = compiled_step(self.recipe, self.optimizer)

    def state(self):
        return init_state(self.networks, self.optimizer, 0, self.window, self.mesh, AxisRules())

    def advance(self, state, batches):
        for batch in batches:
            state, _ = self.step(state, batch, jax.random.key(1), phase=self.phase)
        return state

    def generator(self):
        state = self.state()
        return Generator(self.networks, self.experiment.diffusion, state.ema, state.latents,
                         self.tokenizer, self.lengths)  # fmt: skip


@pytest.fixture(scope="module")
def setup(overrides):
    return Setup(overrides)


@pytest.mark.parametrize("length", [256, 82, 81])
@pytest.mark.parametrize("implementation", ["cudnn", "splash"])
def test_attention_is_xlas(implementation, length):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, length, 2, 64), jnp.bfloat16) for key in keys)
    mask = block_causal(token_layout(jnp.ones((2, length), jnp.int32), 1))

    def squares(q, k, v, which):
        out = attend(q, (k,), (v,), mask, None, which)
        return jnp.mean(out.astype(jnp.float32) ** 2)

    run = jax.jit(jax.value_and_grad(squares, argnums=(0, 1, 2)), static_argnums=3)
    found, expected = run(q, k, v, implementation), run(q, k, v, "xla")
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = float(jnp.abs(other).max())
        np.testing.assert_allclose(np.float32(one), np.float32(other), atol=0.02 * scale)


def test_loss_and_gradients_are_the_cpus(setup):
    """In full fp32; products in TF32 differ by a thousandth."""

    def objective(params, latents, batch):
        loss, _ = fused_loss(params, batch, latents, jax.random.key(1), 0, phase=setup.phase,
                             recipe=setup.recipe)  # fmt: skip
        return loss

    state, results = setup.state(), []
    for device in (jax.devices()[0], jax.devices("cpu")[-1]):
        inputs = jax.device_put((state.params, state.latents, setup.batches[0]), device)
        with jax.default_matmul_precision("highest"), jax.default_device(device):
            results.append(jax.device_get(jax.jit(jax.value_and_grad(objective))(*inputs)))
    (loss, grads), (expected, expected_grads) = results
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3 * np.abs(other).max() + 1e-7)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_text_is_the_same_alone_and_in_a_batch(setup, overrides, solver):
    if solver == "ancestral":  # draws tokens from a posterior, which only some models have
        setup = Setup(overrides, *DEMO)
    generator = setup.generator()
    config = dataclasses.replace(setup.experiment.sample, solver=solver, batch_size=4)
    together = [s.tokens for s in generate(generator, config, 3, num_samples=4)]
    alone = dataclasses.replace(config, batch_size=1)
    assert [s.tokens for s in generate(generator, alone, 3, num_samples=4)] == together
    assert all(0 <= token < setup.tokenizer.vocab_size for text in together for token in text)


def test_a_run_that_was_saved_goes_on_bit_for_bit(setup, tmp_path):
    with use_sharding(setup.mesh, AxisRules()):
        whole = setup.advance(setup.state(), setup.batches)
        state = setup.advance(setup.state(), setup.batches[:2])
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        checkpoints.save(2, state)
        checkpoints.close()
        abstract = abstract_state(
            setup.networks, setup.optimizer, setup.window, setup.mesh, AxisRules()
        )
        restored = Checkpoints(tmp_path / "checkpoints").restore(abstract)
        resumed = setup.advance(restored, setup.batches[2:])
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_nothing_is_compiled_twice(setup):
    with use_sharding(setup.mesh, AxisRules()):
        state = setup.advance(setup.state(), setup.batches[:1])
        compiled = setup.step._cache_size()
        setup.advance(state, setup.batches[1:])
        assert setup.step._cache_size() == compiled
    generator, config = setup.generator(), setup.experiment.sample
    list(generate(generator, config, 0, num_samples=8))
    compiled = generate_tokens.jitted()._cache_size()
    list(generate(generator, config, 1, num_samples=8))
    assert generate_tokens.jitted()._cache_size() == compiled


def test_the_autoregressive_baseline_writes_in_bf16():
    model = TokenTransformer(50, 32, 2, 2, dtype="bfloat16")
    tokens = jnp.zeros((1, 8), jnp.int32)
    params = model.init(jax.random.key(0), tokens, token_layout(tokens))["params"]
    write = partial(write_left_to_right, model, params, top_p=0.95, temperature=1.0)
    for batch in (1, 4):
        blank = jnp.zeros((batch, 12), jnp.int32), jnp.zeros(batch, jnp.int32)
        found = np.asarray(write(*blank, jax.random.key(1)))
        assert found.shape == (batch, 12) and (found < 50).all()
