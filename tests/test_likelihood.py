"""The diffusion part of the bound on a text's likelihood, where it is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldlm_jax.diffusion.bound import diffusion_nats
from ldlm_jax.diffusion.schedule import SCHEDULES


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("ratio", [0.3, 2.0])
def test_the_diffusion_part_is_what_noisy_gaussian_data_tells(schedule, ratio):
    """The integral of the least error is the mutual information (Guo et al. 2005, I-MMSE)."""
    rows, channels = 4000, 8
    z_0 = jax.random.normal(jax.random.key(0), (rows, 1, channels))
    keys = jax.random.split(jax.random.key(1), rows)

    def best(z, t):
        return schedule.linear_estimate(z, t)

    nats = jax.jit(lambda: diffusion_nats(best, z_0, schedule, ratio, keys, 8))()
    information = channels / 2 * np.log1p(ratio**-2)
    error = np.std(nats) / np.sqrt(rows)
    assert error < 0.02 * information
    assert abs(np.mean(nats) - information) < 4 * error
    # A denoiser that knows nothing pays for the whole energy of the data.
    nothing = jax.jit(
        lambda: diffusion_nats(lambda z, t: jnp.zeros_like(z), z_0, schedule, ratio, keys, 8)
    )()
    assert abs(np.mean(nothing) - channels / 2 * ratio**-2) < 4 * np.std(nothing) / np.sqrt(rows)
