"""Text between two given parts, and text that must end with a given word: judged, beside a model
that only sees what stands before.

Command: PYTHONPATH=. python experiments/planning/sentences.py LATENT_RUN AR_RUN OUT.json [TASK ...]
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from experiments.half_hour.baseline import Baseline
from ldlm_jax.data.dataset import prepare, read_texts
from ldlm_jax.evals.quality import shuffled
from ldlm_jax.evals.scorer import Judge
from ldlm_jax.sampling.generate import answer
from ldlm_jax.sampling.request import Request
from ldlm_jax.sampling.template import Hole
from ldlm_jax.workdir import load_run

COUNT, STEPS, JUDGE = 200, (1, 2, 5, 20, 100), "smollm2-135m"


@dataclass(frozen=True)
class Task:
    """A held-out text with a part of it taken out; the parts add up to the text."""

    before: str
    middle: str
    after: str


def middle_missing(text: str) -> Task:
    """Its middle third, in words."""
    words = text.split(" ")
    first, last = len(words) // 3, 2 * len(words) // 3
    before, after = " ".join(words[:first]), " " + " ".join(words[last:])
    return Task(before, text[len(before) : len(text) - len(after)], after)


def end_given(text: str) -> Task:
    """All but its last word."""
    after = " " + text.split(" ")[-1]
    return Task("", text[: len(text) - len(after)], after)


TASKS = {"middle third missing": middle_missing, "last word given": end_given}


def surprise(judge: Judge, tasks: list[Task], texts: list[str]) -> dict[str, float]:
    """Perplexity of what was written, of the given text after it, and of the whole."""
    sums = {name: np.zeros(2) for name in ("written", "after", "whole")}
    encoded = judge.tokenizer.encode(texts)
    for task, text, code, reading in zip(tasks, texts, encoded, judge.read(texts), strict=True):
        start = code.spans[1:, 0]
        ends_at = len(text.encode()) - len(task.after.encode())
        parts = {
            "written": (start >= len(task.before.encode())) & (start < ends_at),
            "after": start >= ends_at,
            "whole": start >= 0,
        }
        for name, chosen in parts.items():
            sums[name] += reading.nll[chosen].sum(), chosen.sum()
    return {name: float(np.exp(nll / count)) for name, (nll, count) in sums.items()}


def main(latent: str, ar: str, out: str, *names: str) -> None:
    """Write, judge, print and store."""
    run, baseline, judge = load_run(latent), Baseline.load("ar", ar), Judge.load(JUDGE)
    tokenizer = run.tokenizer
    texts = [
        text for text in read_texts(prepare(run.experiment.data).text, "validation")
        if len(text.split(" ")) >= 9
        and len(tokenizer.encode([text])[0]) < run.experiment.data.window - 4
    ]  # fmt: skip
    texts = [texts[i] for i in np.linspace(0, len(texts) - 1, COUNT).astype(int)]
    results: dict = {}
    for name in names or TASKS:
        cut = TASKS[name]
        tasks = [cut(text) for text in texts]
        counts = [len(ids) for ids in tokenizer.encode([task.middle for task in tasks])]
        rows = {"real": surprise(judge, tasks, texts)}
        mixed = shuffled([task.middle for task in tasks])
        mixed = [
            f"{task.before} {words}".strip() + task.after
            for task, words in zip(tasks, mixed, strict=True)
        ]
        rows["real, its words shuffled"] = surprise(judge, tasks, mixed)
        written = baseline.write([task.before for task in tasks], 0, top_p=0.8)
        ended = sum(text.endswith(task.after) for task, text in zip(tasks, written, strict=True))
        forced = []
        for task, text, count in zip(tasks, written, counts, strict=True):
            ids = tokenizer.encode([text[len(task.before) :]])[0][:count]
            forced.append(task.before + tokenizer.decode(ids) + task.after)
        rows["autoregressive, the rest put behind"] = surprise(judge, tasks, forced)
        for steps in STEPS:
            config = replace(run.experiment.sample, steps=steps, batch_size=100, temperature=1.0,
                             top_p=0.8)  # fmt: skip
            requests = [
                Request(number=number, config=config, revise=tuple(
                    part for part in (task.before, Hole(count), task.after) if part
                ))
                for number, (task, count) in enumerate(zip(tasks, counts, strict=True))
            ]  # fmt: skip
            samples = [sample.text for sample in answer(run.writer, requests)]
            assert all(s.endswith(task.after) for s, task in zip(samples, tasks, strict=True))
            rows[f"latent, {steps} steps"] = surprise(judge, tasks, samples)
            examples = samples[:5]
        results[name] = {"rows": rows, "autoregressive_ended_so": ended, "examples": examples}
        print(f"{name}: the autoregressive model ended so by itself {ended} times of {COUNT}")
        print("| | written | given text after it | whole |\n|---|---|---|---|")
        for row, values in rows.items():
            print(f"| {row} | " + " | ".join(f"{v:.1f}" for v in values.values()) + " |")
        print("\n".join(examples), flush=True)
    Path(out).write_text(json.dumps({"count": COUNT, "judge": JUDGE, "seed": 0, **results}))


if __name__ == "__main__":
    main(*sys.argv[1:])
