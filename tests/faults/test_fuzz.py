"""The targets of the fuzzer in experiments/reliability, with some plainly mutated inputs each."""

import random

import pytest

from experiments.reliability import fuzz


@pytest.mark.parametrize("target", fuzz.TARGETS, ids=lambda target: target.__name__)
def test_nothing_but_a_refusal_comes_out(target, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setattr(fuzz, "FOLDER", tmp_path)
    rng, seeds = random.Random(0), fuzz.seeds(target)
    tokens = [b"\0", b"\xff", b"9" * 30, b"-1", b"null", b"[]", b"{}", b'"', b"\\ud800", b"1e999"]
    for seed in seeds:
        assert fuzz.found_by(target, seed) is None
    for _ in range(150):
        changed = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 2, 5))):
            place = rng.randrange(len(changed) + 1)
            if rng.random() < 0.5:
                changed[place : place + rng.randrange(4)] = rng.choice(tokens)
            elif changed:
                changed[place % len(changed)] ^= 1 << rng.randrange(8)
        assert fuzz.found_by(target, bytes(changed)) is None, bytes(changed)


def test_what_comes_out_is_found():
    def breaks(data):
        raise KeyError(data)

    assert fuzz.found_by(breaks, b"x").startswith("KeyError at test_fuzz.py:")
