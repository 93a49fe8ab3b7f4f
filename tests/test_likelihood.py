"""The bound on a text's likelihood, where the true value is known."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldlm_jax.data.special_ids import EOS
from ldlm_jax.diffusion.bound import diffusion_nats
from ldlm_jax.diffusion.schedule import SCHEDULES
from ldlm_jax.evals.base import EvalContext
from ldlm_jax.evals.bound import evaluate, nats_of
from ldlm_jax.puzzles.sudoku import Sudoku
from ldlm_jax.sampling.config import SampleConfig
from ldlm_jax.serving.hub import open_model


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("ratio", [0.3, 2.0])
def test_the_diffusion_part_is_what_noisy_gaussian_data_tells(schedule, ratio):
    """The integral of the least error is the mutual information (Guo et al. 2005, I-MMSE)."""
    rows, channels = 4000, 8
    z_0 = jax.random.normal(jax.random.key(0), (rows, 1, channels))
    keys = jax.random.split(jax.random.key(1), rows)

    def best(z, t):
        return schedule.linear_estimate(z, t)

    nats = jax.jit(lambda: diffusion_nats(best, z_0, schedule, (ratio,), keys, 8)[0])()
    information = channels / 2 * np.log1p(ratio**-2)
    error = np.std(nats) / np.sqrt(rows)
    assert error < 0.02 * information
    assert abs(np.mean(nats) - information) < 4 * error
    # A denoiser that knows nothing pays for the whole energy of the data.
    nothing = jax.jit(
        lambda: diffusion_nats(lambda z, t: jnp.zeros_like(z), z_0, schedule, (ratio,), keys, 8)[0]
    )()
    assert abs(np.mean(nothing) - channels / 2 * ratio**-2) < 4 * np.std(nothing) / np.sqrt(rows)


def test_a_bound_lies_a_little_above_the_entropy_of_what_was_learned():
    """There are 28,200,960 grids of side 6, and nothing else to know of them."""
    model, grids = open_model("checkpoints/sudoku6"), random.Random(0)
    texts = [Sudoku(2, 3).random_grid(grids) for _ in range(96)]
    tokens = np.array([[*ids, EOS] for ids in model.tokenizer.encode(texts)])
    batch = {"tokens": tokens, "segments": np.ones_like(tokens)}
    with model.use_sharding():
        context = EvalContext(model.generator, [batch], SampleConfig(), 0, (), 0, None)
        found = evaluate(context)
    # The model was trained on all but a few texts with some cells given, and so is not at its best.
    assert np.log(28_200_960) / 37 - 0.02 < found["bound/nats"] < 0.56
    assert found["bound/decoder"] < 1e-3 and found["bound/length"] < 1e-3


def test_a_bound_counts_what_is_text_alone():
    """What fills a batch and a row up changes nothing; a document's length is paid for once."""
    model = open_model("checkpoints/sudoku6")
    tokens = np.array(model.tokenizer.encode(["123456456123234561561234345612612345"] * 4))
    tokens = np.pad(tokens, ((0, 0), (0, 1)), constant_values=EOS)
    segments = np.ones_like(tokens)
    segments[2:] = 0  # rows that fill the batch up
    segments[1, 20:] = 0  # a short text

    def sums(tokens):
        batch, costs_L = {"tokens": tokens, "segments": segments}, np.full(38, 3.0)
        generator = model.generator
        return jax.device_get(
            nats_of(generator.params, generator.latents, batch, jax.random.key(0), costs_L,
                    networks=generator.networks, diffusion=generator.diffusion)
        )  # fmt: skip

    with model.use_sharding():
        found = sums(tokens)
        np.testing.assert_array_equal(found, sums(np.where(segments > 0, tokens, 7)))
    (length, count), *parts = found
    assert count == 37 + 20 and all(value >= 0 for value, _ in parts)
    decoder, diffusion = np.array([value for value, _ in parts]).reshape(2, -1)
    assert decoder[-1] > decoder[0] and diffusion[-1] < diffusion[0]  # from little noise to much
    np.testing.assert_allclose(length, 2 * 3.0, rtol=1e-6)
