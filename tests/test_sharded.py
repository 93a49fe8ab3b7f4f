"""Eight devices give what one gives, however they are arranged: losses, gradients, and text."""

import dataclasses
from functools import cache, cached_property, partial

import chex
import jax
import numpy as np
import pytest

from ldlm_jax.config import load_config, resolve
from ldlm_jax.data.dataset import prepare
from ldlm_jax.data.pipeline import train_batches
from ldlm_jax.diffusion.solvers import Solver
from ldlm_jax.errors import UserError
from ldlm_jax.optimizer import make_optimizer
from ldlm_jax.parallel.mesh import MeshConfig, make_mesh
from ldlm_jax.parallel.sharding import AxisRules, batch_sharding, own_rows, put_batch, use_sharding
from ldlm_jax.sampling.blockwise import generate_tokens
from ldlm_jax.sampling.config import SampleConfig, row_params
from ldlm_jax.sampling.spec import ConditioningBatch, Spec
from ldlm_jax.train_state import abstract_state, init_state
from ldlm_jax.train_step import train_step
from ldlm_jax.validate import check_mesh
from tests.conftest import IN_BLOCKS, nowhere_zero

RULES = AxisRules()
ONE = {"data": 1}
# All four losses, the teacher among them, and a decoder with a trunk of its own.
WHOLE = [
    "phases=[{'reconstruction': 1.0, 'kl': 0.1, 'diffusion': 1.0, 'alignment': 0.5, "
    "'token': 0.5, 'encoder_gradient': 0.5}]",
    "teacher.model=elsewhere",
]  # fmt: skip
# Blocks, the tokens' posterior and logits in parts.
BLOCKS = [
    *IN_BLOCKS,
    "diffusion.token_posterior=True", "dit.offset_radius=3", "train.logit_chunks=2",
    "optim.name=muon", "phases=[{'token': 1.0, 'encoder_gradient': 1.0}]",
]  # fmt: skip
RING = ["dit.attention=ring", "text_vae.attention=ring", "dit.time_tokens=0"]


class Setup:
    """A config, a batch, and what its step makes of it on some mesh."""

    def __init__(self, overrides, changes):
        self.experiment = resolve(load_config("configs/debug.py", [*overrides, *changes]))
        self.prepared = prepare(self.experiment.data)
        width = self.experiment.text_vae["width"] if self.experiment.aligned else 0
        models = self.experiment.networks(self.prepared.tokenizer.vocab_size, width)
        self.recipe = self.experiment.recipe(models)
        self.batch = next(train_batches(self.prepared, self.experiment.data, 8))
        if self.experiment.aligned:
            shape = (8, self.window, width)
            self.batch["teacher"] = np.asarray(jax.random.normal(jax.random.key(5), shape))

    @property
    def window(self) -> int:
        return self.experiment.data.window

    @cached_property
    def optimizer(self):
        return make_optimizer(self.experiment.optim, 100)

    @cached_property
    def state(self):
        """Random parameters: zero-initialised projections would hide what a mesh does to them."""
        one = make_mesh(MeshConfig(**ONE), jax.devices()[:1])
        state = init_state(self.recipe.networks, self.optimizer, 0, self.window, one, RULES)
        params = nowhere_zero(state.params, 0.05)
        return jax.tree.map(np.asarray, state.replace(params=params, ema=params))

    def on(self, shape: dict, devices=None):
        """A mesh, and the state on it."""
        mesh = make_mesh(MeshConfig(**shape), devices)
        abstract = abstract_state(self.recipe.networks, self.optimizer, self.window, mesh, RULES)
        placed = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), self.state, abstract)
        return mesh, placed

    def steps(self, shape: dict, devices=None):
        """Losses of two steps, and the parameters after them."""
        mesh, state = self.on(shape, devices)
        (phase,) = self.experiment.phases
        step = jax.jit(
            partial(train_step, phase=phase, recipe=self.recipe, optimizer=self.optimizer)
        )
        rows = put_batch(self.batch, batch_sharding(mesh, RULES))
        values = []
        with use_sharding(mesh, RULES):
            for _ in range(2):
                state, metrics = step(state, rows, jax.random.key(1))
                values.append(
                    {k: float(v) for k, v in metrics.items() if "loss" in k or "norm" in k}
                )
        return values, state

    @cached_property
    def alone(self):
        """``steps`` on one device."""
        return self.steps(ONE, jax.devices()[:1])


@pytest.fixture(scope="module")
def made(overrides):
    """Setups by what they change, each made once: what one device says is asked for often."""
    return cache(lambda *changes: Setup(overrides, changes))


def check_steps(setup: Setup, shapes: list[dict]):
    expected, before = setup.alone
    for shape in shapes:
        actual, after = setup.steps(shape)
        chex.assert_trees_all_close(actual, expected, rtol=1e-3, atol=1e-5)
        moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(),
                             after.params, before.params)  # fmt: skip
        assert max(jax.tree.leaves(moved)) < 2e-3, shape
        kernel = after.params["dit"]["trunk"]["blocks"]["mlp"]["down"]["kernel"]
        parts = shape.get("fsdp", 1) * shape.get("tensor", 1)
        assert kernel.sharding.num_devices == 8
        assert kernel.addressable_shards[0].data.size == kernel.size // parts
    return expected


SHAPES = [
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"slice": 2, "data": 1, "fsdp": 2, "sequence": 2},
]


@pytest.mark.slow
def test_all_four_losses_on_every_mesh(made):
    losses = check_steps(made(*WHOLE), SHAPES)
    assert {"loss/reconstruction", "loss/kl", "loss/diffusion", "loss/alignment"} <= set(losses[0])


@pytest.mark.slow
def test_blocks_logits_in_parts_and_muon(made):
    check_steps(made(*BLOCKS), [{"data": 1, "fsdp": 2, "sequence": 2, "tensor": 2}])


@pytest.mark.slow
def test_ring_attention_in_the_step(made):
    check_steps(made(*WHOLE, *RING), [{"data": 2, "sequence": 2, "tensor": 2}])


@pytest.mark.slow
@pytest.mark.parametrize("changes", [[], BLOCKS], ids=["whole", "blocks"])
def test_text_is_the_same_on_a_mesh(made, changes):
    setup = made(*changes)
    models, rows = setup.recipe.networks, 4
    page = ConditioningBatch.blank(rows, setup.window, 1)
    dials = row_params(jax.random.split(jax.random.key(0), rows), [SampleConfig(steps=3)] * rows)
    spec = Spec(models, setup.experiment.diffusion, Solver("stochastic"), steps=3)

    def write(shape, devices=None):
        mesh, state = setup.on(shape, devices)
        with use_sharding(mesh, RULES):
            written = generate_tokens(state.ema, state.latents, page, dials, spec=spec)
            return np.asarray(written.tokens_BxL)

    expected = write(ONE, jax.devices()[:1])
    assert len(np.unique(expected)) > 3
    np.testing.assert_array_equal(write(SHAPES[0]), expected)


@pytest.mark.slow
def test_logits_in_parts_change_nothing(made):
    """Losses and gradients with the positions dealt into parts are those of all at once."""
    for setup, parts in ((made(*WHOLE), 4), (made(*BLOCKS), 1)):
        assert setup.experiment.train.logit_chunks != parts
        other = made(*(WHOLE if parts == 4 else BLOCKS), f"train.logit_chunks={parts}")
        (a, after_a), (b, after_b) = setup.alone, other.alone
        chex.assert_trees_all_close(a, b, rtol=1e-4)
        chex.assert_trees_all_close(after_a.params, after_b.params, atol=1e-4)


def test_rows_of_a_process():
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    assert own_rows(batch_sharding(mesh, RULES), 8).tolist() == list(range(8))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mesh": {"data": 8}, "train": {"batch_size": 12}}, "12 rows do not divide among the 8"),
        ({"mesh": {"data": 1, "tensor": 8}}, "heads do not divide among the 8"),
        ({"mesh": {"data": 1, "sequence": 8}, "data": {"window": 36}}, "positions do not divide"),
    ],
)
def test_what_does_not_divide_is_named(experiment, change, said):
    for section, values in change.items():
        part = dataclasses.replace(getattr(experiment, section), **values)
        experiment = dataclasses.replace(experiment, **{section: part})
    with pytest.raises(UserError, match=said):
        check_mesh(experiment, make_mesh(experiment.mesh))


def test_a_parameter_that_does_not_divide_is_named(experiment):
    models = experiment.networks(101)
    optimizer = make_optimizer(experiment.optim, 10)
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    with pytest.raises(UserError, match="'vocab' of size 101 does not divide among the 2"):
        abstract_state(models, optimizer, experiment.data.window, mesh, RULES)
