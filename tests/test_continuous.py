"""Texts that join a running batch and leave it are what they would be alone."""

import threading
from dataclasses import replace

import jax
import numpy as np
import pytest

from ldlm_jax import load
from ldlm_jax.parallel.mesh import MeshConfig, make_mesh
from ldlm_jax.puzzles.base import OPEN, Puzzle
from ldlm_jax.sampling.candidates import spec_of
from ldlm_jax.sampling.continuous import RunningBatch
from ldlm_jax.sampling.generate import check_request, generate_requests
from ldlm_jax.sampling.puzzles import requests_of
from ldlm_jax.sampling.request import Request
from ldlm_jax.serving.batcher import Batcher, Job, Limits

PUZZLES = [
    "4.1.....5.6......6...51...4..315.6..",
    "..3..6.4..1..1....2.6....5...4.2.6..",
    "....................................",
    ".2.4.6.5..1..........3..4..6.1.3.5..",
    "123456456123231564564231312645645312",  # nothing to find
]


@pytest.fixture(scope="module")
def model():
    return load("checkpoints/sudoku6", mesh=make_mesh(MeshConfig(data=1), jax.devices()[:1]))


def asked(model, **options):
    """The puzzles, with steps, temperature and seed of their own."""
    config = model.options(steps=12, stable_steps=1, **options)
    requests = requests_of([Puzzle(p.replace(".", OPEN)) for p in PUZZLES], config, 3)
    requests[1] = replace(requests[1], config=replace(config, steps=5, temperature=0.9), seed=4)
    requests[3] = replace(requests[3], config=replace(config, stable_steps=0))
    return requests


def test_texts_are_what_they_would_be_alone(model):
    """In fewer rows than texts, each with as many steps as alone."""
    requests = asked(model, batch_size=2)
    together = list(generate_requests(model.run.generator, requests))
    alone = [s for r in requests for s in generate_requests(model.run.generator, [r])]
    assert [s.text for s in together] == [s.text for s in alone]
    assert [s.evaluations for s in together] == [s.evaluations for s in alone]
    assert together[4].evaluations == 0 and together[3].evaluations == 12
    assert len({s.evaluations for s in together}) > 2


def test_drafts_and_the_best_of_several_are_as_alone(model):
    requests = asked(model, batch_size=3)
    requests[0] = replace(requests[0], config=replace(requests[0].config, best_of=3))
    several, alone = (
        [s for group in groups for s in generate_requests(model.run.generator, group, True)]
        for groups in ([requests], [[r] for r in requests])
    )
    for a, b in zip(several, alone, strict=True):
        assert a.text == b.text and a.evaluations == b.evaluations
        assert [d.text for d in a.drafts] == [d.text for d in b.drafts]
        np.testing.assert_allclose(a.drafts[0].confidence, b.drafts[0].confidence, atol=2e-3)


def test_texts_stay_the_same_when_the_batch_is_resized_or_others_leave(model):
    generator, requests = model.run.generator, asked(model)
    alone = [s.text for r in requests for s in generate_requests(generator, [r])]
    spec = spec_of(generator, [(r, check_request(generator, r)) for r in requests])
    batch, found = RunningBatch(generator, 2, spec), {}
    batch.join(2, requests[2], check_request(generator, requests[2]))
    batch.join("left", requests[3], check_request(generator, requests[3]))
    found |= batch.step()
    batch.drop(["left"])
    batch.resize(4)
    for tag in (0, 1, 3):
        batch.join(tag, requests[tag], check_request(generator, requests[tag]))
    while batch.busy:
        found |= batch.step()
        batch.resize(max(1, batch.busy))
    assert found == {tag: found[tag] for tag in (0, 1, 2, 3)}
    assert [found[tag].text for tag in range(4)] == alone[:4]


def test_the_server_lets_texts_join_between_two_steps(model):
    """A short request that comes while a long one runs does not wait for its end; a job that is
    given up frees its place, and one that fails tells all that were under way."""
    batcher, done = Batcher(model.run, Limits(max_batch=2, queue=8)), []
    long, short = (model.options(steps=n, stable_steps=0) for n in (256, 2))
    began, finished = threading.Event(), threading.Event()
    score = batcher._score

    def job(name, config, number):
        def note(sample, _):
            done.append((name, sample))
            if len(done) == 3:
                finished.set()

        return Job(Request("", 0, number, config), note)

    jobs = [job("long", long, 0), job("given up", long, 1)]
    step = RunningBatch.step

    def watched(self):
        began.set()
        return step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunningBatch, "step", watched)
        batcher.submit(jobs)
        began.wait()
        batcher.cancel(jobs[1:])
        batcher.submit([job("short", short, 2)])
        batcher.submit([job("other", short, 3)])
        assert finished.wait(120)
    assert [name for name, _ in done] == ["short", "other", "long"]
    alone = generate_requests(model.run.generator, [Request("", 0, 2, short)])
    assert done[0][1].text == next(alone).text
    drafts = []
    drawn = job("drafts", model.options(steps=6, stable_steps=0), 5)
    drawn.keep_drafts, drawn.on_draft = True, drafts.append
    finished.clear()
    done[:] = done[:2]
    batcher.submit([drawn])
    assert finished.wait(60)
    # Two steps a call, and nothing but the text itself after the last.
    kept = [draft.text for draft in done[-1][1].drafts]
    assert drafts == [kept[1], kept[3]] and len(kept) == 6
    failed = threading.Event()
    batcher._score = lambda *_: 1 / 0
    broken = job("broken", short, 4)
    broken.scored, broken.done = True, lambda error, _: (done.append(error), failed.set())
    batcher.submit([broken])
    assert failed.wait(60) and isinstance(done[-1], ZeroDivisionError)
    batcher._score = score
    batcher.close()
