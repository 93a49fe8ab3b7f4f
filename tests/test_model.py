"""The Python API: every method of a loaded model, from threads, on a mesh of one's own."""

import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from ldlm_jax import load
from ldlm_jax.data.special_ids import EOS
from ldlm_jax.errors import UserError
from ldlm_jax.parallel.mesh import MeshConfig, make_mesh
from ldlm_jax.sampling.stream import InOrder
from ldlm_jax.serving.model import slerp
from tests.conftest import untrained_run

# 300 steps of a tiny model of blocks.
TRAINED = Path(__file__).parent / "fixtures" / "run_0_1"


@pytest.fixture(scope="module")
def one():
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


@pytest.fixture(scope="module")
def blocks(one):
    return load(TRAINED, mesh=one)


@pytest.fixture(scope="module")
def whole(overrides, tmp_path_factory, one):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    changes = ("diffusion.suffix=0.2", "text_vae.tokens_per_latent=2", "data.pad_to_multiple=2")
    return load(untrained_run(folder, [*overrides, *changes]), mesh=one)


def test_importing_the_package_starts_no_device():
    code = "import sys, ldlm_jax; ldlm_jax.load; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_texts_continue_and_seeds_count(blocks):
    samples = blocks.generate("The king", num_samples=3, steps=4)
    assert len({s.text for s in samples}) == 3
    assert all(s.text.startswith("The king") for s in samples)
    again = blocks.generate("The king", num_samples=3, steps=4)
    assert [s.tokens for s in again] == [s.tokens for s in samples]
    assert blocks.generate("The king", steps=4, seed=1)[0].text != samples[0].text
    (two,) = blocks.generate("The king", suffix=" people.", steps=2)
    assert two.text.startswith("The king") and two.text.endswith(" people.")
    with pytest.raises(UserError, match="did you mean 'temperature'"):
        blocks.generate(temprature=1.0)
    with pytest.raises(UserError, match="steps = 0"):
        blocks.generate(steps=0)


@pytest.mark.slow
def test_spans_are_filled_and_parts_revised(blocks):
    for sample in blocks.infill("My ____{2} went ____", num_samples=2, steps=2):
        assert sample.text.startswith("My") and " went" in sample.text
    text = "The king spoke.\n\nThe king went."
    for version in blocks.revise(text, find="king", num_samples=2, steps=2):
        first, second = version.split("\n\n")
        assert first.startswith("The") and first.endswith(" spoke.") and second.endswith(" went.")
    assert blocks.revise(text, spans=[(4, 8)], steps=2)[0].endswith("The king went.")
    with pytest.raises(UserError, match="does not hold 'queen'"):
        blocks.revise(text, find="queen")
    with pytest.raises(UserError, match="find or spans"):
        blocks.revise(text)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["", "My son", "The king "])
def test_a_stream_is_the_text_in_pieces(blocks, whole, prompt):
    pieces = list(blocks.stream(prompt, steps=3, seed=2))
    assert "".join(pieces) == blocks.generate(prompt, steps=3, seed=2)[0].text
    assert len(pieces) > 1
    assert list(whole.stream(prompt, steps=2)) == [whole.generate(prompt, steps=2)[0].text]


@pytest.mark.slow
def test_blocks_are_shown_in_order_and_on_many_devices(blocks):
    shown = []
    show = InOrder(shown.append)
    for index in (1, 0, 3, 4, 2):
        show(index, index)
    assert shown == [0, 1, 2, 3, 4]
    pieces = list(load(TRAINED).stream("My son", steps=3, seed=2))
    assert pieces == list(blocks.stream("My son", steps=3, seed=2))


def test_a_streams_error_is_raised_where_it_is_read(blocks):
    with pytest.raises(UserError, match="window"):
        list(blocks.stream("word " * 60))


def test_threads_get_the_texts_that_they_would_get_alone(blocks):
    prompts = ["The king", "My son", "An angel", "A servant"]
    alone = [blocks.generate(p, steps=3)[0].text for p in prompts]
    streamed, together = {}, threading.Barrier(2 * len(prompts))

    def ask(number):
        together.wait()
        prompt = prompts[number % len(prompts)]
        if number < len(prompts):
            return blocks.generate(prompt, steps=3)[0].text
        streamed[prompt] = "".join(blocks.stream(prompt, steps=3))
        return streamed[prompt]

    with ThreadPoolExecutor(2 * len(prompts)) as pool:
        assert list(pool.map(ask, range(2 * len(prompts)))) == alone + alone


def test_likelihood_is_the_product_over_tokens(blocks):
    found = blocks.log_likelihood("The king spoke to the people.")
    assert found.exact and found.standard_error == 0 and found.tokens[-1] == EOS
    assert found.log_likelihood == pytest.approx(sum(found.token_log_probs))
    for token, log_prob, top in zip(found.tokens, found.token_log_probs, found.top, strict=True):
        assert len(top) == 5 and sum(map(np.exp, top.values())) <= 1 + 1e-5
        assert top.get(token, log_prob) == pytest.approx(log_prob)
        assert token in top or log_prob <= min(top.values())
    # A sentence like those it was trained on is likelier than the same words out of order.
    assert (
        found.log_likelihood > blocks.log_likelihood("people the to. spoke king The").log_likelihood
    )
    # Chain rule: a text is its beginning and the rest after it.
    rest = blocks.log_likelihood(" spoke to the people.", given="The king")
    begun = blocks.log_likelihoods([("", "The king")], ends=False)[0]
    total = rest.log_likelihood + begun.log_likelihood
    assert total == pytest.approx(found.log_likelihood, rel=1e-4)
    several = blocks.log_likelihoods([("", "The king"), ("The king", " spoke to the people.")])
    assert several[1].log_likelihood == pytest.approx(rest.log_likelihood, rel=1e-4)
    with pytest.raises(UserError, match="split it"):
        blocks.log_likelihood("word " * 60)
    with pytest.raises(UserError, match="no token"):
        blocks.log_likelihoods([("The", "")], ends=False)


def test_a_bound_has_an_error_that_falls_with_draws(whole):
    few, many = (whole.log_likelihood("The king.", draws=n) for n in (4, 64))
    assert not few.exact and few.top == [] and few.standard_error > 0
    assert many.standard_error < few.standard_error
    assert abs(few.log_likelihood - many.log_likelihood) < 5 * few.standard_error
    # Of a prompt the latents that it fills are given.
    after = whole.log_likelihood(".", given="The king", draws=16)
    assert after.log_likelihood > many.log_likelihood and len(after.tokens) < len(many.tokens)


def test_latents_are_read_back(blocks, whole):
    text = "The king blessed the people."
    latents = blocks.encode(text)
    assert latents.shape[1] == blocks.run.assembly.networks.vae.latent_channels
    assert len(latents) % 4 == 0 and blocks.decode(latents) == text
    assert len(whole.encode(text)) * 2 >= len(whole.run.tokenizer.encode([text])[0]) + 1
    assert isinstance(whole.decode(whole.encode(text)), str)
    with pytest.raises(UserError, match="expected"):
        blocks.decode(latents[:, :3])
    with pytest.raises(UserError, match="window"):
        blocks.encode("word " * 60)


def test_the_ends_of_an_interpolation_are_the_texts(blocks):
    a, b = "The king blessed the people.", "My son feared Jerusalem."
    assert blocks.interpolate(a, b, 0.0) == a and blocks.interpolate(a, b, 1.0) == b
    assert blocks.interpolate(a, b, 0.5) not in (a, b)
    with pytest.raises(UserError, match="t = 2"):
        blocks.interpolate(a, b, 2)


def test_interpolation_turns_evenly_and_keeps_the_length():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 8))
    angles = [
        np.arccos(np.sum(slerp(a, b, t) * a, -1) / np.linalg.norm(a, axis=-1)
                  / np.linalg.norm(slerp(a, b, t), axis=-1))
        for t in (0.25, 0.5, 1.0)
    ]  # fmt: skip
    np.testing.assert_allclose(angles[0] * 4, angles[2], rtol=1e-6)
    np.testing.assert_allclose(angles[1] * 2, angles[2], rtol=1e-6)
    np.testing.assert_allclose(slerp(a, a, 0.3), a)


def test_a_run_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no model"):
        load(tmp_path / "none")


@pytest.mark.slow
def test_the_examples_of_the_page_run(monkeypatch, tmp_path, capsys):
    page = (Path(__file__).parent.parent / "ldlm_jax/serving/README.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mine").symlink_to(TRAINED, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    assert len(examples) == 2
    exec("\n".join(examples), {})
    assert "The king blessed the people." in capsys.readouterr().out
