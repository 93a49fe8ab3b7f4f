"""The arithmetic of noise against closed forms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ldlm_jax.diffusion import time_grid
from ldlm_jax.diffusion import time_sampling as time
from ldlm_jax.diffusion.conditioning import ObservedShares, draw_observed
from ldlm_jax.diffusion.guidance import guide, guide_by_context
from ldlm_jax.diffusion.objective import Objective
from ldlm_jax.diffusion.rows import row_noise
from ldlm_jax.diffusion.schedule import SCHEDULES, Cosine, RectifiedFlow
from ldlm_jax.diffusion.solvers import SOLVERS, EarlyStop, Estimate, Solver, solve
from ldlm_jax.models.token_layout import token_layout

MEAN = np.array([1.0, -2.0])
COVARIANCE = np.array([[1.5, 0.8], [0.8, 0.7]])


STRAIGHT = RectifiedFlow()


def solved(*how):
    """The latents at the end."""
    return solve(*how)[0].at.z


def exact_denoiser(schedule):
    """Exact distribution of z_0 given z_t = alpha z_0 + sigma eps, z_0 ~ N(MEAN, COVARIANCE)."""

    def denoise(z, t, _, rows):
        alpha, sigma = schedule.alpha(jnp.ravel(t)[0]), schedule.sigma(jnp.ravel(t)[0])
        marginal = alpha**2 * COVARIANCE + sigma**2 * jnp.eye(2)
        gain = alpha * COVARIANCE @ jnp.linalg.inv(marginal)
        clean = MEAN + (z - alpha * MEAN) @ gain.T
        spread = jnp.linalg.cholesky((jnp.eye(2) - alpha * gain) @ COVARIANCE)
        return Estimate(clean, clean, clean + row_noise(rows, (2,)) @ spread.T)

    return denoise


gaussian_denoiser = exact_denoiser(STRAIGHT)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("distribution", [None, time.LogitNormal(0.5, 1.0)])
def test_exact_velocity_recovers_the_distribution(solver, distribution, name):
    # 20,000 samples: standard error of a mean is below 0.009, of a covariance below 0.016.
    noise = jax.random.normal(jax.random.key(0), (20_000, 2))
    schedule, steps = SCHEDULES[name], 300
    how = Solver(solver, schedule=schedule)
    z = solved(exact_denoiser(schedule), noise, times(steps, distribution), keys(noise), how)
    np.testing.assert_allclose(np.mean(z, axis=0), MEAN, atol=0.04)
    np.testing.assert_allclose(np.cov(z.T), COVARIANCE, atol=0.06)


@pytest.mark.parametrize("churn", [0.0, 1.0])
def test_ancestral_steps_may_be_long(churn):
    """Draws give the law itself in few steps, whatever the churn; steps to the mean do not."""
    noise = jax.random.normal(jax.random.key(0), (20_000, 2))
    for grid in ([1.0, 0.0], [1.0, 0.6, 0.0], [1.0, 0.8, 0.3, 0.0]):
        found = {}
        for solver in ("ancestral", "stochastic"):
            args = gaussian_denoiser, noise, jnp.array(grid)[:, None], keys(noise)
            found[solver] = solved(*args, Solver(solver, churn))
        np.testing.assert_allclose(np.mean(found["ancestral"], axis=0), MEAN, atol=0.04)
        np.testing.assert_allclose(np.cov(found["ancestral"].T), COVARIANCE, atol=0.06)
        assert np.abs(np.cov(found["stochastic"].T) - COVARIANCE).max() > 0.2


@pytest.mark.slow
def test_positions_may_run_at_times_of_their_own():
    """Two independent unit Gaussians, one written before the other: both come out right."""

    def denoise(z, t, _, rows):
        marginal = (1 - t) ** 2 + t**2  # E[z_0 | z_t] of a standard normal, and its variance
        clean, variance = (((1 - t) / marginal)[..., None] * z, t**2 / marginal)
        return Estimate(clean, (), clean + jnp.sqrt(variance)[..., None] * row_noise(rows, (2, 1)))

    noise = jax.random.normal(jax.random.key(0), (20_000, 2, 1))
    u = time_grid.rolling(time_grid.quantile_grid(800), 2, 1.0)[:, None]
    assert u[0].tolist() == [[1.0, 1.0]] and u[-1].tolist() == [[0.0, 0.0]]
    assert u[400].tolist() == [[0.0, 1.0]]  # one is done when the other begins
    np.testing.assert_array_equal(
        time_grid.rolling(time_grid.quantile_grid(5), 3, 0.0)[:, 2], time_grid.quantile_grid(5)
    )
    for solver in SOLVERS:
        z = solved(denoise, noise, u, keys(noise), Solver(solver))
        np.testing.assert_allclose(np.cov(z[..., 0].T), np.eye(2), atol=0.05)


def keys(noise):
    return jax.random.split(jax.random.key(1), len(noise))


def times(steps, distribution=None):
    u = time_grid.quantile_grid(steps)
    return (u if distribution is None else distribution.quantile(u))[:, None]


def test_euler_is_of_first_order():
    noise = jax.random.normal(jax.random.key(0), (256, 2))

    def error(solver, steps):
        def solution(steps):
            grid = jnp.linspace(0.95, 0.05, steps + 1)[:, None]
            return solved(gaussian_denoiser, noise, grid, keys(noise), Solver(solver))

        return float(jnp.abs(solution(steps) - solution(1024)).mean())

    assert 1.7 < error("euler", 16) / error("euler", 32) < 2.4


def test_stochastic_solver_without_churn_is_euler_and_with_it_is_not():
    noise = jax.random.normal(jax.random.key(0), (64, 2))
    args = (gaussian_denoiser, noise, times(10), keys(noise))
    euler = solved(*args, Solver("euler"))
    chex.assert_trees_all_close(solved(*args, Solver("stochastic", 0.0)), euler, atol=2e-3)
    assert float(jnp.abs(solved(*args, Solver("stochastic", 1.0)) - euler).max()) > 0.1


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_row_is_solved_alike_whatever_stands_beside_it(solver):
    """Rows with fewer steps are done earlier and then stay."""

    def denoise(z, t, earlier, rows):
        clean = jnp.sin(z) + 0.3 * earlier + t[..., None]
        return Estimate(clean, (), clean + row_noise(rows, z.shape[1:]))

    noise, rows = jax.random.normal(jax.random.key(0), (3, 5, 2)), keys(jnp.zeros(3))
    steps = jnp.array([3, 7, 1])
    grid = jnp.broadcast_to(time_grid.quantile_grid(steps, 7)[..., None], (8, 3, 5))
    together = solved(denoise, noise, grid, rows, Solver(solver))
    for i, count in enumerate(steps.tolist()):
        part, grid = (
            slice(i, i + 1),
            jnp.broadcast_to(time_grid.quantile_grid(count)[:, None, None], (count + 1, 1, 5)),
        )
        alone = solved(denoise, noise[part], grid, rows[part], Solver(solver))
        chex.assert_trees_all_close(together[part], alone, atol=1e-5)


def test_estimates_are_kept_for_every_step():
    noise = jax.random.normal(jax.random.key(0), (4, 2))
    end, extra = solve(gaussian_denoiser, noise, times(7), keys(noise), Solver("euler"))
    chex.assert_shape(extra, (7, 4, 2))
    chex.assert_trees_all_close(extra[-1], end.at.z, atol=1e-5)
    assert end.steps_B.tolist() == [7] * 4


@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_stop_when_they_are_told_to_and_do_not_care_for_the_others(solver):
    """A row stops after as many steps as its first number says; the model then rests."""
    seen = []

    def denoise(z, t, *_):
        jax.debug.callback(lambda: seen.append(1))
        clean = 0.5 * z
        return Estimate(clean, clean, clean)

    def update(count, extra):
        return count + 1, count + 1 >= limits

    start, grid = jax.random.normal(jax.random.key(0), (3, 2)), times(9)
    solve(denoise, start, times(1), keys(start), Solver(solver))
    jax.effects_barrier()
    of_a_step = len(seen)
    for limits in (jnp.array([2, 4, 3]), jnp.array([2, 9, 9])):
        seen.clear()
        watch = EarlyStop(jnp.zeros(3, int), update)
        end, extra = solve(denoise, start, grid, keys(start), Solver(solver), watch)
        jax.effects_barrier()
        assert end.steps_B.tolist() == limits.tolist()
        assert len(seen) == of_a_step * int(limits.max())
        # It ends at its last estimate, which is kept in what it said.
        chex.assert_trees_all_close(end.at.z[0], extra[1, 0], atol=1e-6)
        chex.assert_trees_all_close(extra[8, 0], extra[1, 0], atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_identities(name):
    """Clean latents by the formula; a step and forward noise keep to the path."""
    schedule, key = SCHEDULES[name], jax.random.key(0)
    z_0, noise = jax.random.normal(key, (2, 3, 5, 4))
    t = jax.random.uniform(key, (3, 5), minval=0.1, maxval=0.95)
    z_t = schedule.interpolate(z_0, noise, t)
    forward = jax.jvp(lambda t: schedule.interpolate(z_0, noise, t), (t,), (jnp.ones_like(t),))[1]
    chex.assert_trees_all_close(schedule.clean_from_velocity(z_t, forward, t), z_0, atol=1e-4)
    s = jnp.full((3, 5), 0.07)
    stepped = schedule.step(z_t, z_0, t, s)
    chex.assert_trees_all_close(stepped, schedule.interpolate(z_0, noise, s), atol=1e-4)
    chex.assert_trees_all_equal(schedule.step(z_t, z_0, t, t), z_t)
    chex.assert_trees_all_close(schedule.step(z_t, z_0, t, 0 * t), z_0, atol=1e-6)
    # From s forward to t with fresh noise: the marginal variance is that of the path.
    many = jax.random.normal(key, (2, 100_000, 1))
    r, s = jnp.full(100_000, 0.3), jnp.full(100_000, 0.7)
    again = schedule.add_noise(schedule.sigma(r)[:, None] * many[0], many[1], r, s)
    assert float(again.std()) == pytest.approx(float(schedule.sigma(s)[0]), rel=0.02)
    ratio = schedule.sigma(t) / schedule.alpha(t)
    chex.assert_trees_all_close(schedule.time_at(ratio), t, atol=1e-5)
    assert schedule.alpha(jnp.zeros(())) == 1 and schedule.sigma(jnp.zeros(())) == 0


def test_the_cosine_schedule_preserves_variance():
    t = jnp.linspace(0, 1, 11)
    chex.assert_trees_all_close(Cosine().alpha(t) ** 2 + Cosine().sigma(t) ** 2, 1 + 0 * t)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("t", [0.0, 0.3, 0.9, 1.0])
def test_no_linear_estimate_is_better(t, name):
    """Against least squares on data of unit variance that is far from Gaussian."""
    rng, schedule = np.random.default_rng(0), SCHEDULES[name]
    z_0 = rng.choice([-1.0, 1.0], size=(200_000, 1))
    t = jnp.full(len(z_0), t)
    z_t = np.asarray(schedule.interpolate(z_0, rng.normal(size=z_0.shape), t))
    slope = (z_t * z_0).sum() / (z_t * z_t).sum()
    estimate = schedule.linear_estimate(jnp.asarray(z_t, jnp.float32), t)
    np.testing.assert_allclose(estimate, slope * z_t, atol=0.03)


def test_law_of_times_is_the_logit_normal():
    law = time.LogitNormal(1.2, 0.7)
    t = np.asarray(law.quantile(time.stratified(jax.random.key(0), 4096)), np.float64)
    logit = np.log(t / (1 - t))
    assert stats.kstest(logit, stats.norm(1.2, 0.7).cdf).pvalue > 0.5  # stratified: near perfect
    assert abs(np.corrcoef(t[:-1], t[1:])[0, 1]) < 0.05  # and in random order


def test_grid_runs_from_noise_to_data():
    for law in (None, time.LogitNormal(1.0, 1.0)):
        grid = times(20, law)
        assert grid[0] == 1.0 and grid[-1] == 0.0
        assert bool(jnp.all(jnp.diff(grid, axis=0) < 0))
    rows = time_grid.quantile_grid(jnp.array([2, 4]), 4)
    assert rows.T.tolist() == [[1.0, 0.5, 0.0, 0.0, 0.0], [1.0, 0.75, 0.5, 0.25, 0.0]]
    with pytest.raises(ValueError, match="at least 1 step"):
        time_grid.quantile_grid(0)


@pytest.mark.parametrize("prediction", ["x", "v"])
@pytest.mark.parametrize("space", ["x", "v"])
def test_losses_agree_between_predictions_and_spaces(prediction, space):
    key = jax.random.key(0)
    z_0, noise, output = jax.random.normal(key, (3, 2, 4, 8))
    t = jnp.full((2, 4), 0.4)
    z_t = STRAIGHT.interpolate(z_0, noise, t)
    objective = Objective(STRAIGHT, prediction, space)
    clean = objective.clean(output, z_t, t)
    loss = objective.loss(clean, z_0, t)
    target = z_0 if prediction == "x" else noise - z_0
    scale = {("x", "x"): 1, ("v", "v"): 1, ("v", "x"): 0.4**2, ("x", "v"): 1 / 0.4**2}
    expected = scale[prediction, space] * jnp.mean((output - target) ** 2, axis=-1)
    chex.assert_trees_all_close(loss, expected, rtol=1e-4)


def test_guidance_weights():
    a, b = jnp.array([2.0]), jnp.array([1.0])
    assert guide(a, b, 1.0) == a and guide(a, b, 0.0) == b and guide(a, b, 3.0) == 4.0


def test_guidance_by_context_favours_what_only_the_context_tells_and_leaves_the_end_alone():
    """Against numbers worked out by hand: odds of two tokens are moved by those of the other."""
    known, near = jnp.log(jnp.array([[0.3, 0.3, 0.4]])), jnp.log(jnp.array([[0.1, 0.7, 0.2]]))
    ends = jnp.array([False, False, True])
    guided = jnp.exp(guide_by_context(known, near, 2.0, ends))[0]
    assert float(guided[2]) == pytest.approx(0.4, abs=1e-6)
    assert float(guided[0] / guided[1]) == pytest.approx(7.0, rel=1e-5)
    assert float(guided.sum()) == pytest.approx(1.0, abs=1e-6)
    chex.assert_trees_all_equal(guide_by_context(known, near, 1.0, ends), known)
    # Where the text surely ends there is nothing to push.
    sure = jnp.array([[-200.0, -200.0, 0.0]])
    assert jnp.isfinite(guide_by_context(sure, near, 2.0, ends)).all()


SEGMENTS = jnp.array([[1, 1, 1, 1, 2, 2, 2, 0], [1, 2, 2, 2, 2, 2, 2, 2]])


def test_positions_restart_with_every_document():
    expected = [[0, 1, 2, 3, 0, 1, 2, 0], [0, 0, 1, 2, 3, 4, 5, 6]]
    assert token_layout(SEGMENTS).positions_BxN.tolist() == expected


def test_known_parts_have_the_asked_shape_and_never_fill_a_document():
    segments = jnp.tile(SEGMENTS, (500, 1))
    positions = token_layout(segments).positions_BxN

    def draw(**shares):
        return np.asarray(
            draw_observed(jax.random.key(0), segments, positions, ObservedShares(**shares))
        )

    def documents(known):
        for row, numbers in enumerate(np.asarray(segments)):
            for number in set(numbers) - {0}:
                yield known[row, numbers == number].astype(int)

    cases = {name: draw(**{name: 1.0}) for name in ("prefix", "suffix", "infill", "random_spans")}
    for known in cases.values():
        assert not known[np.asarray(segments) == 0].any() and known.mean() > 0.25
        assert not any(document.all() for document in documents(known))
    assert all((np.diff(known) <= 0).all() for known in documents(cases["prefix"]))
    assert all((np.diff(known) >= 0).all() for known in documents(cases["suffix"]))
    assert all((np.diff(1 - known) == 1).sum() <= 1 for known in documents(cases["infill"]))
    holes = [(np.diff(1 - known) == 1).sum() for known in documents(cases["random_spans"])]
    assert max(holes) >= 2
    mixed = draw(prefix=0.2, infill=0.1)
    some = [mixed[r, np.asarray(segments[r]) == 2].any() for r in range(len(mixed))]
    assert 0.1 < np.mean(some) < 0.35
