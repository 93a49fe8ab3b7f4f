"""Writing: overfitted text comes back, prompts stay, lengths and stops are right."""

import dataclasses
import re
from functools import partial

import jax
import numpy as np
import pytest

from ldlm_jax.config import load_config, resolve
from ldlm_jax.data.dataset import prepare
from ldlm_jax.data.special_ids import EOS, PAD
from ldlm_jax.errors import UserError
from ldlm_jax.evals import EvalContext, run_evals
from ldlm_jax.evals.text_metrics import text_statistics
from ldlm_jax.models.denoiser import Denoiser, latent_layout
from ldlm_jax.optimizer import make_optimizer
from ldlm_jax.parallel.mesh import make_mesh
from ldlm_jax.phases import phase_at
from ldlm_jax.sampling.blockwise import generate_tokens
from ldlm_jax.sampling.candidates import draw_lengths
from ldlm_jax.sampling.generate import generate, generate_requests
from ldlm_jax.sampling.generator import Generator
from ldlm_jax.sampling.likelihood import log_likelihoods
from ldlm_jax.sampling.request import Request, SampleConfig
from ldlm_jax.sampling.rerank import log_likelihood
from ldlm_jax.sampling.template import cut_spans
from ldlm_jax.train_state import init_state
from ldlm_jax.train_step import train_step
from tests.conftest import DEMO, packed_rows, sentences

STEPS = 1100


TWO_PHASES = ["diffusion.prefix=0.3", "diffusion.infill=0.0", "autoencoding.decoder_noise=1.0",
              f"phases=[{{'until': {STEPS // 4}, 'diffusion': 0.0}},"
              "{'train': ['dit'], 'reconstruction': 0.0, 'kl': 0.0}]"]  # fmt: skip


@pytest.fixture(scope="module")
def overfitted(overrides):
    """A model trained on 16 sentences, first the autoencoder, then the denoiser."""
    return train_on_sixteen([*overrides, *TWO_PHASES], STEPS, copies=2)


@pytest.fixture(scope="module")
def overfitted_in_blocks(overrides):
    """The same, writing four tokens at a time after those before them."""
    return train_on_sixteen([*overrides, *DEMO], 900, copies=1)


def train_on_sixteen(overrides, steps, copies):
    extra = ["text_vae.width=64", "dit.width=64",
             "text_vae.latent_channels=16", "optim.name=muon", "optim.learning_rate=4e-3",
             "optim.ema_decay=0.98", "autoencoding.token_mask=0.0", "data.packing=pad"]  # fmt: skip
    experiment = resolve(load_config("configs/debug.py", [*overrides, *extra]))
    tokenizer = prepare(experiment.data).tokenizer
    texts = sentences()[::10]
    ids = tokenizer.encode(texts)
    rows = packed_rows(ids, experiment.data)
    batch = {k: np.stack([row[k] for row in rows]) for k in ("tokens", "segments")}
    batch = jax.tree.map(lambda x: np.concatenate([x] * copies), batch)
    models = experiment.networks(tokenizer.vocab_size)
    recipe, optimizer = experiment.recipe(models), make_optimizer(experiment.optim, steps)
    mesh = make_mesh(dataclasses.replace(experiment.mesh, data=1), jax.devices()[:1])
    state = init_state(models, optimizer, 0, experiment.data.window, mesh, experiment.sharding)
    step = jax.jit(
        partial(train_step, recipe=recipe, optimizer=optimizer),
        static_argnames="phase", donate_argnums=0,
        # Hundreds of steps: here compiling well pays, unlike elsewhere in these tests.
        compiler_options={
            "xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False,
        },
    )  # fmt: skip
    for i in range(steps):
        phase = phase_at(experiment.phases, i)
        state, metrics = step(state, batch, jax.random.key(0), phase=phase)
    lengths = np.bincount([len(i) + 1 for i in ids], minlength=experiment.data.window + 1)
    state = jax.device_get(state)
    generator = Generator(
        models, experiment.diffusion, state.ema, state.latents, tokenizer, lengths
    )
    return generator, recipe, batch, texts


def test_reconstruction_of_an_overfitted_batch_is_above_99_percent(overfitted):
    generator, recipe, batch, _ = overfitted
    context = EvalContext(generator, [batch], SampleConfig(), 4, (4,), 0, None)
    results = run_evals(("reconstruction",), context)
    assert results["reconstruction/accuracy_noise_0"] > 0.99
    assert results["reconstruction/accuracy_noise_3"] < results["reconstruction/accuracy_noise_0"]


@pytest.mark.slow
def test_what_stands_before_tells_of_a_token(overfitted, overfitted_in_blocks):
    """Sixteen sentences known by heart: only how they begin is open, and where a block goes on."""
    generator, recipe, batch, texts = overfitted_in_blocks
    context = EvalContext(generator, [batch], SampleConfig(), 4, (4,), 0, None)
    results = run_evals(("context",), context)
    entropy = np.log(len(texts)) * len(texts) / (batch["segments"] > 0).sum()
    assert entropy < results["context/nats"] < 4 * entropy
    assert entropy < results["context/nats_blocks_of_one"] < 4 * entropy
    assert results["context/nats_at_once"] > 1.5 * results["context/nats"]
    # With the rest given nothing is open.
    assert results["context/nats_hole"] < entropy
    assert results["context/nats_hole_blocks_of_one"] < entropy
    with pytest.raises(UserError, match="leave it out"):
        run_evals(("context",), dataclasses.replace(context, generator=overfitted[0]))


@pytest.mark.parametrize("solver", ["euler", "stochastic"])
def test_sampling_returns_the_text_of_an_overfitted_batch(overfitted, solver):
    generator, _, _, texts = overfitted
    config = SampleConfig(steps=40, solver=solver, batch_size=64)
    written = [s.text for s in generate(generator, config, 0, num_samples=64)]
    exact = [text for text in written if text in texts]
    assert len(exact) >= 0.85 * len(written), written[:10]
    assert len(set(exact)) >= 8  # and not one of them over and over


@pytest.mark.slow
def test_blocks_return_the_text_of_an_overfitted_batch_and_more_steps_help(overfitted_in_blocks):
    generator, _, _, texts = overfitted_in_blocks

    def exact(steps):
        config = SampleConfig(steps=steps, batch_size=64, churn=2.0, time_offset=1.0)
        written = [s.text for s in generate(generator, config, 0, num_samples=64)]
        return [text for text in written if text in texts]

    many = exact(30)
    assert len(many) >= 0.85 * 64 and len(set(many)) >= 8
    assert len(exact(2)) < len(many)


@pytest.mark.slow
@pytest.mark.parametrize("block_size, steps", [(4, 30), (2, 8), (1, 2)])
def test_smaller_blocks_are_written_by_the_same_model(overfitted_in_blocks, block_size, steps):
    """With tokens drawn, so that a block of one needs no more than the step that draws it."""
    generator, _, _, texts = overfitted_in_blocks
    config = SampleConfig(
        steps=steps, solver="ancestral", block_size=block_size, batch_size=64, time_offset=1.0
    )
    samples = list(generate(generator, config, 0, num_samples=64))
    exact = [s.text for s in samples if s.text in texts]
    assert len(exact) >= 0.85 * 64 and len(set(exact)) >= 8, [s.text for s in samples[:10]]
    blocks = [-(-len(s.tokens) // block_size) for s in samples]
    assert [s.evaluations for s in samples] == [steps * count for count in blocks]


@pytest.mark.slow
def test_blocks_continue_a_prompt_of_any_length(overfitted_in_blocks):
    generator, _, _, texts = overfitted_in_blocks
    config = SampleConfig(steps=40, batch_size=16, time_offset=1.0)
    for prompt in ("My", "My son", "My son went"):
        possible = [t for t in texts if t.startswith(prompt)]
        samples = list(generate(generator, config, 0, num_samples=16, prompt=prompt))
        assert all(s.text.startswith(prompt) for s in samples)
        assert np.mean([s.text in possible for s in samples]) > 0.6, (prompt, samples[:4])


@pytest.mark.slow
def test_holes_are_filled_with_what_fits_both_sides(overfitted_in_blocks):
    """Middle, beginning, and several holes at once, of given and of open length."""
    generator, _, _, texts = overfitted_in_blocks
    config = SampleConfig(steps=20, batch_size=64, time_offset=1.0)

    def fill(template, count=16, **changes):
        asked = Request(template=template, config=dataclasses.replace(config, **changes))
        return [s.text for s in generate_requests(generator, asked.several(count))]

    right = []
    for text in texts[:6]:
        words = text.split()
        between = " " + " ".join(words[2:-1])
        hole = len(generator.tokenizer.encode([between])[0])
        template = f"{' '.join(words[:2])}____{{{hole}}} {words[-1]}"
        written = fill(template)
        assert all(t.startswith(" ".join(words[:2])) and t.endswith(words[-1]) for t in written)
        right += [t in texts for t in written]
    # Blind to what follows, about a third would be.
    assert np.mean(right) > 0.6
    for template in ("____ the people.", "The ____ blessed ____"):
        pattern = re.escape(template).replace("____", ".+")
        assert all(re.fullmatch(pattern, t) for t in fill(template, 4))


@pytest.mark.slow
def test_likelihood_is_of_one_token_after_another(overfitted_in_blocks):
    """As the evaluator reads blocks of one, and of what follows a hole, too."""
    generator, recipe, batch, _ = overfitted_in_blocks
    segments, filled = batch["segments"], batch["tokens"] != PAD
    sixteen = jax.random.split(jax.random.key(0), len(segments))

    def ask(known_BxL):
        denoiser = Denoiser.create(
            generator.networks, generator.params, generator.diffusion, generator.latents
        )
        layout = latent_layout(segments, generator.networks, generator.diffusion, known_BxL)
        return np.asarray(log_likelihood(denoiser, batch["tokens"], layout, known_BxL, sixteen))

    context = EvalContext(generator, [batch], SampleConfig(), 4, (4,), 0, None)
    expected = run_evals(("context",), context)["context/nats_blocks_of_one"]
    lengths = filled.sum(1)
    nowhere, third = np.zeros(segments.shape, bool), np.arange(segments.shape[1]) == 2
    mean = -ask(nowhere)
    np.testing.assert_allclose((mean * lengths).sum() / lengths.sum(), expected, rtol=1e-4)
    # What was written counts by its mean, what follows it by its sum.
    rest = -ask(np.broadcast_to(np.arange(segments.shape[1]) < 2, segments.shape)) * (lengths - 2)
    np.testing.assert_allclose(-ask(~third & filled), rest, rtol=1e-4)
    assert (rest < mean * lengths).all()


@pytest.mark.slow
def test_sixteen_known_texts_are_near_their_entropy_and_never_below(overfitted):
    generator, _, _, texts = overfitted
    found = log_likelihoods(generator, [("", text) for text in texts], draws=32)
    nats = np.array([-one.log_likelihood for one in found])
    error = np.sqrt(np.mean([one.standard_error**2 for one in found]) / len(found))
    # Of the text given its length, so at least the entropy among texts of one length.
    lengths = np.array([len(one.tokens) for one in found])
    entropy = np.mean([np.log(np.sum(lengths == n)) for n in lengths])
    assert entropy - 3 * error < nats.mean() < entropy + 0.5 * lengths.mean()
    # Of other sentences in the same words it knows nothing.
    others = [("", text) for text in sentences() if text not in texts][:16]
    foreign = [-one.log_likelihood for one in log_likelihoods(generator, others, draws=8)]
    assert np.mean(foreign) > 3 * nats.mean()


@pytest.mark.slow
def test_what_follows_a_hole_bears_out_one_of_several_fillings(overfitted_in_blocks):
    generator, _, _, texts = overfitted_in_blocks
    config = SampleConfig(steps=1, solver="ancestral", block_size=1, batch_size=64)

    def right(best_of):
        """Share of verbs found: what stands before them leaves more of them open than the end."""
        asked = []
        for text in texts:
            words = text.split()
            hole = len(generator.tokenizer.encode([" " + " ".join(words[2:-1])])[0])
            template = f"{' '.join(words[:2])} ____{{{hole}}} {words[-1]}"
            one = Request(template=template, config=dataclasses.replace(config, best_of=best_of))
            asked += one.several(2)
        written = [s.text for s in generate_requests(generator, asked)]
        return np.mean([text in texts for text in written])

    assert right(1) < 0.85 and right(8) > 0.95


@pytest.mark.slow
def test_what_is_revised_gently_stays_nearer(overfitted_in_blocks):
    generator, _, _, texts = overfitted_in_blocks
    text = next(t for t in texts if "blessed" in t)
    at = text.index("blessed")

    def kept(strength):
        config = SampleConfig(steps=10, strength=strength, batch_size=16)
        pieces = cut_spans(text, [(at, len(text) - 1)])
        samples = generate_requests(generator, Request(revise=pieces, config=config).several(16))
        written = [s.text for s in samples]
        assert all(t.startswith(text[:at]) and t.endswith(".") for t in written)
        return np.mean([t == text for t in written])

    assert kept(0.05) == 1.0 and kept(0.3) >= kept(1.0)


@pytest.mark.slow
def test_easy_blocks_cost_fewer_steps(overfitted_in_blocks):
    """Rows stop by themselves: fewer evaluations, the same texts, alone or together."""
    generator = overfitted_in_blocks[0]
    patient = SampleConfig(steps=40, batch_size=4, stable_steps=3, confidence=0.9)
    samples = list(generate(generator, patient, 0, num_samples=4))
    whole = list(generate(generator, SampleConfig(steps=40, batch_size=4), 0, num_samples=4))
    assert sum(s.evaluations for s in samples) < 0.8 * sum(s.evaluations for s in whole)
    assert all(s.evaluations % 40 == 0 for s in whole)
    assert np.mean([a.text == b.text for a, b in zip(samples, whole, strict=True)]) >= 0.75
    alone = [
        s for i in range(4) for s in generate_requests(generator, [Request("", 0, i, patient)])
    ]
    assert [s.tokens for s in alone] == [s.tokens for s in samples]
    assert [s.evaluations for s in alone] == [s.evaluations for s in samples]


@pytest.mark.slow
def test_the_best_of_several_is_chosen(overfitted_in_blocks):
    """Rough drafts, by their likeness (chrF, 0 to 100) to the nearest text known by heart."""
    chrf = pytest.importorskip("sacrebleu").sentence_chrf
    generator, _, _, texts = overfitted_in_blocks
    rough = SampleConfig(steps=4, batch_size=64)

    def likeness(**changes):
        config = dataclasses.replace(rough, **changes)
        written = [s.text for s in generate(generator, config, 0, num_samples=64)]
        return np.mean([max(chrf(w, [text]).score for text in texts) for w in written])

    first = likeness()
    assert likeness(best_of=4) > first + 6
    assert likeness(best_of=4, rerank="mbr") > first


@pytest.mark.slow
def test_text_goes_on_beyond_the_window_with_a_memory_of_one(overfitted_in_blocks):
    generator = overfitted_in_blocks[0]
    config = SampleConfig(steps=3, batch_size=2)
    blocks = []

    def on_block(index, tokens):
        blocks.append((int(index), tokens.shape))

    long = dataclasses.replace(config, length=3 * generator.window)
    prompt = "The woman remembered. " * 5
    assert len(generator.tokenizer.encode([prompt])[0]) > generator.window
    asked = [Request(prompt, 0, 0, long), Request("", 0, 1, long)]
    first, second = generate_requests(generator, asked, on_block=on_block)
    assert first.text.startswith(prompt) and len(first.tokens) <= 3 * generator.window
    assert blocks == [(i, (2, 4)) for i in range(3 * generator.window // 4)]
    # As long as nothing has left the memory, it is as if the text were short.
    (short,) = generate_requests(generator, [Request("", 0, 1, config)])
    assert second.tokens[: len(short.tokens)] == short.tokens


@pytest.mark.slow
def test_guidance_remembers_with_and_without_the_prompt(overfitted_in_blocks):
    """Weight 1 is no guidance; another weight changes the text, and the prompt stays."""
    generator = overfitted_in_blocks[0]
    prompt = "The"

    def write(guidance):
        config = SampleConfig(steps=4, batch_size=16, guidance=guidance)
        return [s.text for s in generate(generator, config, 3, num_samples=16, prompt=prompt)]

    guided = write(6.0)
    assert guided != write(1.0) and all(text.startswith(prompt) for text in guided)


def test_a_prompt_is_kept_and_continued_from_the_batch(overfitted):
    generator, _, _, texts = overfitted
    prompt = "My son"
    # A length that no text with this beginning has would leave nothing right to write.
    possible = [t for t in texts if t.startswith(prompt)]
    counts = [len(ids) + 1 for ids in generator.tokenizer.encode(possible)]
    lengths = np.bincount(counts, minlength=generator.window + 1)
    generator = dataclasses.replace(generator, lengths=tuple(lengths))
    config = SampleConfig(steps=40, batch_size=32, guidance=1.5)
    written = [s.text for s in generate(generator, config, 0, num_samples=32, prompt=prompt)]
    assert all(text.startswith(prompt) for text in written)
    assert np.mean([text in possible for text in written]) > 0.6, written[:8]


def test_same_seed_same_text_and_other_seed_other_text(overfitted):
    generator = overfitted[0]
    config = SampleConfig(steps=5, batch_size=8)

    def write(seed):
        return [s.text for s in generate(generator, config, seed, num_samples=8)]

    assert write(3) == write(3) != write(4)


def test_samples_stop_at_their_end(overfitted):
    generator = overfitted[0]
    config = SampleConfig(steps=10, batch_size=64)
    samples = list(generate(generator, config, 1, num_samples=64))
    longest = max(i for i, n in enumerate(generator.lengths) if n)
    assert all(len(s.tokens) <= longest < generator.window for s in samples)
    for sample in samples:
        assert EOS not in sample.tokens[:-1] and PAD not in sample.tokens[:-1]
    assert np.mean([s.tokens[-1] == EOS for s in samples]) > 0.8


def test_drafts_sharpen_into_the_text(overfitted):
    config = SampleConfig(steps=16, batch_size=2)
    (sample,) = generate(overfitted[0], config, 0, prompt="My son", keep_drafts=True)
    assert len(sample.drafts) == 16 and sample.drafts[-1].text == sample.text
    assert all(draft.text.startswith("My son") for draft in sample.drafts)
    given = len(overfitted[0].tokenizer.encode(["My son"])[0])
    assert all(draft.confidence[:given] == [1.0] * given for draft in sample.drafts)
    first, late = (np.mean(sample.drafts[i].confidence[given:]) for i in (0, 14))
    assert first < late


def test_no_recompilation_between_calls_of_one_shape(overfitted):
    generator = overfitted[0]
    config = SampleConfig(steps=7, batch_size=4)
    list(generate(generator, config, 0, num_samples=4))
    before = generate_tokens.jitted()._cache_size()
    list(generate(generator, config, 9, num_samples=12, prompt="The"))
    assert generate_tokens.jitted()._cache_size() == before


def test_lengths_follow_the_histogram_and_exceed_the_prompt():
    histogram = [0, 0, 10, 30, 0, 60]
    rng = np.random.default_rng(0)
    drawn = draw_lengths(histogram, 0, 10_000, rng)
    np.testing.assert_allclose(np.bincount(drawn) / 1e4, np.array(histogram) / 100, atol=0.02)
    assert draw_lengths(histogram, 3, 1000, rng).min() == 5
    assert set(draw_lengths(histogram, 5, 5, rng)) == {5}


def test_statistics_tell_repetition_from_text():
    real = text_statistics(sentences()[:40])
    loops = text_statistics(["go up go up go up go up go up"] * 4)
    assert loops["loop_rate"] == 1.0 and real["loop_rate"] == 0.0
    assert loops["seq_rep_4"] > 0.5 > real["seq_rep_4"]
    assert loops["entropy"] < real["entropy"] and loops["distinct_2"] < real["distinct_2"]
    assert text_statistics([""]) == {}
