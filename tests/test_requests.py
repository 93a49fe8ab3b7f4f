"""Requests: unlike ones together, spans, what is refused; all of untrained generators."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldlm_jax.config import load_config, resolve
from ldlm_jax.data.dataset import prepare
from ldlm_jax.data.special_ids import EOS, MASK, PAD
from ldlm_jax.diffusion.rows import row_choice
from ldlm_jax.diffusion.solvers import Solver
from ldlm_jax.errors import UserError
from ldlm_jax.models.denoiser import Denoiser, latent_layout
from ldlm_jax.models.networks import LatentStats
from ldlm_jax.sampling import generate as generate_module
from ldlm_jax.sampling.blockwise import BlockwiseSampler
from ldlm_jax.sampling.config import SampleConfig, row_params
from ldlm_jax.sampling.generate import generate, generate_requests
from ldlm_jax.sampling.generator import Generator
from ldlm_jax.sampling.logits import end_tokens
from ldlm_jax.sampling.request import Request, read_requests
from ldlm_jax.sampling.spec import FULL, ConditioningBatch, Spec
from tests.conftest import DEMO, IN_BLOCKS, nowhere_zero


def babbling(overrides):
    """An untrained generator whose words hang on everything: its parameters are nowhere zero."""
    experiment = resolve(load_config("configs/debug.py", overrides))
    prepared = prepare(experiment.data)
    models = experiment.networks(prepared.tokenizer.vocab_size)
    params = nowhere_zero(models.init(jax.random.key(0), experiment.data.window), 0.1, seed=1)
    latents = LatentStats.create(models.vae.latent_channels)
    lengths = tuple(prepared.stats["lengths"])
    return Generator(models, experiment.diffusion, params, latents, prepared.tokenizer, lengths)


@pytest.mark.parametrize("changes", [(), IN_BLOCKS], ids=["whole", "blocks"])
def test_a_contextual_space_is_sampled_by_tokens_drawn_and_encoded(overrides, changes):
    """Where a token alone does not tell its latent, what is drawn are latents of whole texts: of
    the block's tokens, drawn from what the decoder reads, after the tokens of earlier blocks."""
    generator = babbling([*overrides, *changes])
    window, rows, index = generator.window, 2, 1 if changes else 0
    networks, diffusion = generator.networks, generator.diffusion
    given = ConditioningBatch.blank(rows, window, 1, endless=True)
    given.observed_BxN[:, index * 4] = True
    given.tokens_BxL[:, index * 4] = 9
    options = row_params(jax.random.split(jax.random.key(0), rows), [SampleConfig()] * rows)
    spec = Spec(networks, diffusion, Solver("ancestral"), 1, cached_latents=window)
    create = jax.jit(
        lambda tokens_BxL, z_BxSxD: drawn_by(generator, given, options, spec, tokens_BxL, z_BxSxD)
    )
    tokens_BxL = jax.random.randint(jax.random.key(1), (rows, window), 5, 40)
    tokens_BxL = tokens_BxL.at[:, index * 4].set(9)
    size = diffusion.block_size or window
    z_BxSxD = jax.random.normal(jax.random.key(2), (rows, size, networks.vae.latent_channels))
    drawn_BxSxD, new_BxT, expected = create(tokens_BxL, z_BxSxD)
    np.testing.assert_allclose(drawn_BxSxD, expected, atol=1e-5)
    assert np.ptp(np.asarray(new_BxT)[:, 1:], axis=0).any(), "each row draws its own"
    if changes:  # the same tokens have other latents after another text
        other, same_BxT, _ = create(tokens_BxL.at[:, :4].set(41), z_BxSxD)
        alike = np.asarray(same_BxT == new_BxT)
        assert alike.any() and not np.allclose(other[alike], drawn_BxSxD[alike], atol=1e-3)


def drawn_by(generator, given, options, spec, tokens_BxL, z_BxSxD):
    """What the sampler draws from noisy latents of the block that holds the first given token, the
    tokens by their definition, and the latents that these have in the text."""
    sampler = BlockwiseSampler.create(generator.params, generator.latents, given, options, spec)
    index = 1 if sampler.blocks > 1 else 0
    block = sampler.block(tokens_BxL, index, sampler.first_caches())
    problem = sampler.problem(block, index)
    t_BxS = jnp.full(z_BxSxD.shape[:2], 0.5)
    estimate = problem.denoise(z_BxSxD, t_BxS, jnp.zeros_like(z_BxSxD), problem.keys_B)
    denoiser, start, size = sampler.denoiser, index * sampler.size, sampler.size
    z_BxSxD = jnp.where(block.observed_BxS[..., None], block.given_BxSxD, z_BxSxD)
    inputs = block.inputs(z_BxSxD, t_BxS, jnp.zeros_like(z_BxSxD), FULL)
    logits = denoiser.denoise(inputs, block.caches.get(FULL)).logits_BxLxV
    if logits is None:
        logits = denoiser.read(estimate.clean, block.layout)
    logits = jnp.where(end_tokens(logits.shape[-1]), -1e4, logits).at[..., MASK].set(-jnp.inf)
    new_BxT = row_choice(problem.keys_B, logits)
    text_BxL = tokens_BxL.at[:, start : start + size].set(new_BxT)
    z_BxNxD = denoiser.encode(text_BxL, sampler.layout, given.observed_BxN)
    expected = z_BxNxD[:, start : start + size]
    return estimate.drawn, new_BxT, block.with_observed(expected)


@pytest.mark.slow
def test_the_cache_holds_the_latest_blocks(overrides):
    """One window of them, in turn; what is not yet generated takes its place beforehand."""
    generator = babbling([*overrides, *DEMO])
    window, size, rows = generator.window, 4, 2
    networks, diffusion = generator.networks, generator.diffusion
    given = ConditioningBatch.blank(rows, 3 * window, 1, endless=True)
    options = row_params(jax.random.split(jax.random.key(0), rows), [SampleConfig(steps=1)] * rows)
    spec = Spec(networks, diffusion, Solver("euler"), 1, cached_latents=window)
    layout = latent_layout(given.segments_BxL, networks, diffusion, given.observed_BxN)
    denoiser = Denoiser.create(networks, generator.params, diffusion, generator.latents)
    sampler = BlockwiseSampler(spec, denoiser, given, layout, options)
    next_block = jax.jit(lambda carry, index: sampler.next_block(carry, index)[0])
    caches = jax.jit(sampler.first_caches)()
    carry = jax.numpy.asarray(given.tokens_BxL), caches, jax.numpy.zeros(rows, bool)
    for index in range(sampler.blocks):
        carry = next_block(carry, index)
        (cache,) = carry[1].values()
        held = np.unique(np.asarray(cache.layout.block_ids_BxN))
        first = max(0, index - window // size)
        assert held.tolist() == list(range(first, first + window // size)), index


@pytest.mark.slow
def test_context_guidance_costs_an_evaluation_and_changes_the_text(overrides):
    """In blocks of four and of one, without and with a memory; where it is 1 it changes nothing."""
    generator = babbling([*overrides, *DEMO])
    config = SampleConfig(steps=2, batch_size=4, solver="ancestral")

    def write(config):
        return list(generate_requests(generator, [Request("", 0, i, config) for i in range(4)]))

    for size in (0, 1):
        plain = dataclasses.replace(config, block_size=size)
        guided = dataclasses.replace(plain, context_guidance=1.5)
        alone, with_it = write(plain), write(guided)
        assert all(a.tokens != b.tokens for a, b in zip(alone, with_it, strict=True))
        asked = [Request("", 0, 0, guided), Request("", 0, 1, plain)]
        first, second = generate_requests(generator, asked)
        assert first.tokens == with_it[0].tokens and second.tokens == alone[1].tokens
        assert second.evaluations == alone[1].evaluations
        blocks = -(-(len(first.tokens) + 1) // (size or 4))
        assert first.evaluations in (2 * 2 * blocks, 2 * 2 * (blocks - 1))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [(), DEMO], ids=["whole", "blocks"])
def test_unlike_requests_are_written_as_if_alone(overrides, changes):
    """Prompts, spans, seeds, steps, guidance and the rest may differ within one compiled call."""
    generator = babbling([*overrides, *changes])
    cold = 0.6 if generator.diffusion.token_posterior else 1.0
    by_context = 1.5 if generator.diffusion.block_size else 1.0
    own = SampleConfig(
        steps=6, guidance=3.0, self_condition_guidance=2.0,
        context_guidance=by_context, temperature=cold, time_offset=1.0, stable_steps=2,
        confidence=0.0,
    )  # fmt: skip
    few = SampleConfig(steps=3)
    hole = Request(template="My ____{4} went ____{3} home", seed=4, config=few)
    asked = [Request("", 1, 0, few), Request("My son", 2, 5, own), hole]
    together = [s.tokens for s in generate_requests(generator, asked)]
    assert together == [s.tokens for one in asked for s in generate_requests(generator, [one])]
    plain = [dataclasses.replace(r, config=few) for r in asked]
    first, second, _ = (s.tokens for s in generate_requests(generator, plain))
    assert first == together[0] and second != together[1]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [(), DEMO], ids=["whole", "blocks"])
def test_in_bf16_a_text_is_the_same_in_every_call_of_one_shape(overrides, changes, monkeypatch):
    """However many are asked for, beside whatever, in any row, beside others of more steps."""
    halves = ("dit.dtype=bfloat16", "text_vae.dtype=bfloat16")
    generator = babbling([*overrides, *changes, *halves])
    rows, run = [], generate_module.generate_tokens

    def generate_tokens(params, latents, given, *rest, **static):
        rows.append(len(given.tokens_BxL))
        return run(params, latents, given, *rest, **static)

    monkeypatch.setattr(generate_module, "generate_tokens", generate_tokens)
    fixed = SampleConfig(steps=4, batch_size=8, batch_shape="fixed")

    def tokens(*asked):
        return [s.tokens for s in generate_requests(generator, asked)]

    own = Request("The", 3, 0, fixed)
    others = [Request("My son", 9, i, fixed) for i in range(4)]
    (alone,) = tokens(own)
    assert len(set(map(tuple, [alone, *tokens(*others)]))) == 5
    three = tokens(*own.several(3))
    six = tokens(*own.several(6))
    assert six[:3] == three and three[0] == alone
    assert tokens(own, *others)[0] == tokens(*others, own)[-1] == alone
    more = [dataclasses.replace(r, config=dataclasses.replace(fixed, steps=7)) for r in others]
    assert tokens(*more, own)[-1] == alone
    assert set(rows) == {8}
    fitting = dataclasses.replace(own, config=SampleConfig(steps=4, batch_size=8))
    tokens(fitting)
    assert rows[-1] == 1


@pytest.mark.slow
@pytest.mark.parametrize("changes", [(), DEMO], ids=["whole", "blocks"])
def test_no_text_ends_within_a_hole(overrides, changes):
    """Not even if nothing is likelier than an end."""
    generator = babbling([*overrides, *changes, "diffusion.infill=0.2"])
    kernel = generator.params["text_vae"]["decoder"]["head"]["kernel"]
    ends = kernel.at[:, EOS].set(9 * kernel[:, 7]).at[:, PAD].set(-9 * kernel[:, 7])
    generator.params["text_vae"]["decoder"]["head"]["kernel"] = ends
    config = SampleConfig(steps=2)
    request = Request(template="My ____{9} went ____{8} home", config=config)
    for sample in generate_requests(generator, request.several(8)):
        assert len(sample.tokens) > 17 and not {EOS, PAD} & set(sample.tokens[:-1])
        assert re.fullmatch("My .* went .* home", sample.text, re.DOTALL)
    free = list(generate_requests(generator, Request("My", config=config).several(8)))
    assert any(sample.tokens[-1] in (EOS, PAD) for sample in free)


def test_requests_written_together_agree_on_the_solver(overrides):
    asked = [Request(config=SampleConfig(solver=name)) for name in ("euler", "stochastic")]
    with pytest.raises(UserError, match="agree on solver"):
        list(generate_requests(babbling(overrides), asked))


def test_requests_are_read_line_by_line(tmp_path):
    file = tmp_path / "asked.jsonl"
    file.write_text('{"prompt": "My son", "steps": 3, "guidance": 2}\n\n{"seed": 9, "lag": 0.5}\n')
    one, two = read_requests(str(file), SampleConfig(steps=7, churn=0.5), seed=4)
    assert one == Request("My son", 4, 0, SampleConfig(steps=3, churn=0.5, guidance=2))
    assert two == Request("", 9, 2, SampleConfig(steps=7, churn=0.5, time_offset=0.5))
    file.write_text('{"prompt": "a\u2028b\x85c"}\n', encoding="utf-8-sig")
    (line,) = read_requests(str(file), SampleConfig(), 0)
    assert line.prompt == "a\u2028b\x85c"
    for line, words in (
        ('{"promt": ""}', "did you mean 'prompt'"),
        ('{"steps": "5"}', "steps = '5': must be a whole number"),
        ('{"steps": 0}', "steps = 0: must be in [1, 10000]"),
        ("[3]", "not a JSON object"),
        ("{nonsense", "asked.jsonl:2"),
        ("", "holds no request"),
    ):
        file.write_text("\n" + line)
        with pytest.raises(UserError, match=re.escape(words)):
            read_requests(str(file), SampleConfig(), 0)
    with pytest.raises(UserError, match="cannot read requests"):
        read_requests(str(tmp_path / "none"), SampleConfig(), 0)


@pytest.mark.parametrize(
    ("kwargs", "config", "words"),
    [
        ({"prompt": "word " * 60}, {}, "window"),
        ({"num_samples": 0}, {}, "num_samples"),
        ({}, {"length": 4096}, "diffusion.block_size"),
        ({}, {"top_p": 0.9}, "sample.solver=ancestral"),
        ({}, {"block_size": 2}, "no blocks"),
    ],
)
def test_impossible_requests_are_refused(overrides, kwargs, config, words):
    with pytest.raises(UserError, match=words):
        list(generate(babbling(overrides), SampleConfig(**config), 0, **kwargs))


def test_impossible_holes_are_refused(overrides):
    generator = babbling([*overrides, *DEMO])
    for request, words in (
        (Request(template="My ____{40} home"), "window"),
        (Request("word " * 30, suffix="home"), "window"),
        (Request("a", suffix="b", config=SampleConfig(length=64)), "only to continue"),
    ):
        with pytest.raises(UserError, match=words):
            list(generate_requests(generator, [request]))
    with pytest.raises(UserError, match="blocks of 4, which it must divide"):
        list(generate(generator, SampleConfig(block_size=3), 0))
    with pytest.raises(UserError, match="leave prompt and suffix empty"):
        Request("My son", template="a ____ b")
    only_prefixes = dataclasses.replace(generator.diffusion, infill=0.0)
    with pytest.raises(UserError, match="diffusion.infill"):
        list(
            generate_requests(
                dataclasses.replace(generator, diffusion=only_prefixes), [Request(suffix="b")]
            )
        )


def test_guidance_needs_condition_dropout(overrides):
    generator = babbling([*overrides, "diffusion.condition_dropout=0.0"])
    with pytest.raises(UserError, match="condition_dropout"):
        list(generate(generator, SampleConfig(guidance=2.0), 0, prompt="The king"))
