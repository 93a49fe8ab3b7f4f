"""The long run's judgement: what grows is found, and a start is no growth."""

import json

from experiments.soak.soak import ALLOWED, growth, last_step


def samples(leak: float):
    start = [{"step": 0, "memory_mb": 300.0, "threads": 9, "files": 20, "compilations": 1}] * 500
    run = [{"step": i, "memory_mb": 900 + leak * i, "threads": 40, "files": 60 + leak * i,
            "compilations": 30} for i in range(1, 101)]  # fmt: skip
    return start + run


def test_what_grows_is_found():
    assert growth(samples(0.0)) == dict.fromkeys(ALLOWED, 0.0)
    grown = growth(samples(1.0))
    assert grown["memory_mb"] > ALLOWED["memory_mb"] and grown["files"] > ALLOWED["files"]
    assert grown["threads"] == grown["compilations"] == 0


def test_the_last_whole_line_counts(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert last_step(file) == 0
    file.write_text("".join(json.dumps({"step": i}) + "\n" for i in (1, 20, 40)) + '{"step": 6')
    assert last_step(file) == 40
