"""Score text between two given parts, and text before a given last word, beside a baseline.

The baseline is autoregressive: it reads only the text before.

Command: PYTHONPATH=. python experiments/planning/sentences.py LATENT_RUN AR_RUN OUT.json [TASK ...]
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from experiments.baselines.sampling import Baseline
from ldlm_jax.data.dataset import prepare
from ldlm_jax.data.texts import read_texts
from ldlm_jax.data.tokenizer import Tokenizer
from ldlm_jax.evals.quality import shuffled
from ldlm_jax.evals.scorer import Scorer
from ldlm_jax.sampling.generate import generate_requests
from ldlm_jax.sampling.request import Request
from ldlm_jax.sampling.template import Span
from ldlm_jax.workdir import LoadedRun, load_run

COUNT, STEPS, SCORER = 200, (1, 2, 5, 20, 100), "smollm2-135m"


@dataclass(frozen=True)
class Task:
    """A held-out text, of which the middle is to be generated; its parts add up to it."""

    before: str
    middle: str
    after: str


def middle_missing(text: str) -> Task:
    """The middle third is missing, in words."""
    words = text.split(" ")
    first, last = len(words) // 3, 2 * len(words) // 3
    before, after = " ".join(words[:first]), " " + " ".join(words[last:])
    return Task(before, text[len(before) : len(text) - len(after)], after)


def end_given(text: str) -> Task:
    """All but the last word is missing."""
    after = " " + text.split(" ")[-1]
    return Task("", text[: len(text) - len(after)], after)


TASKS = {"middle third missing": middle_missing, "last word given": end_given}


def perplexities(scorer: Scorer, tasks: list[Task], texts: list[str]) -> dict[str, float]:
    """Perplexity of what was generated, of the given text after it, and of the whole."""
    sums = {name: np.zeros(2) for name in ("written", "after", "whole")}
    encoded = scorer.tokenizer.encode(texts)
    for task, text, code, score in zip(tasks, texts, encoded, scorer.read(texts), strict=True):
        start = code.spans[1:, 0]
        ends_at = len(text.encode()) - len(task.after.encode())
        parts = {
            "written": (start >= len(task.before.encode())) & (start < ends_at),
            "after": start >= ends_at,
            "whole": start >= 0,
        }
        for name, chosen in parts.items():
            sums[name] += score.nll[chosen].sum(), chosen.sum()
    return {name: float(np.exp(nll / count)) for name, (nll, count) in sums.items()}


def held_out(run: LoadedRun) -> list[str]:
    """Validation texts that are long enough to cut and fit the window."""
    texts = [
        text for text in read_texts(prepare(run.experiment.data).text, "validation")
        if len(text.split(" ")) >= 9
        and len(run.tokenizer.encode([text])[0]) < run.experiment.data.window - 4
    ]  # fmt: skip
    return [texts[i] for i in np.linspace(0, len(texts) - 1, COUNT).astype(int)]


def with_shuffled_middles(tasks: list[Task]) -> list[str]:
    """The real texts, the words of their middles in random order."""
    middles = shuffled([task.middle for task in tasks])
    return [
        f"{task.before} {words}".strip() + task.after
        for task, words in zip(tasks, middles, strict=True)
    ]


def with_end_appended(
    tasks: list[Task], texts: list[str], counts: list[int], tokenizer: Tokenizer
) -> list[str]:
    """Texts of the baseline: as many tokens as the middle has, then the given end."""
    forced = []
    for task, text, count in zip(tasks, texts, counts, strict=True):
        ids = tokenizer.encode([text[len(task.before) :]])[0][:count]
        forced.append(task.before + tokenizer.decode(ids) + task.after)
    return forced


def filled(run: LoadedRun, tasks: list[Task], counts: list[int], steps: int) -> list[str]:
    """Texts of the latent model, which is given both sides."""
    config = replace(run.experiment.sample, steps=steps, batch_size=100, temperature=1.0, top_p=0.8)
    requests = []
    for number, (task, count) in enumerate(zip(tasks, counts, strict=True)):
        pieces = tuple(part for part in (task.before, Span(count), task.after) if part)
        requests.append(Request(number=number, config=config, revise=pieces))
    texts = [sample.text for sample in generate_requests(run.generator, requests)]
    assert all(t.endswith(task.after) for t, task in zip(texts, tasks, strict=True))
    return texts


def main(latent: str, ar: str, out: str, *names: str) -> None:
    """Generate, score, print and store."""
    run, baseline, scorer = load_run(latent), Baseline.load("ar", ar), Scorer.load(SCORER)
    tokenizer, texts, results = run.tokenizer, held_out(run), {}
    for name in names or TASKS:
        tasks = [TASKS[name](text) for text in texts]
        counts = [len(ids) for ids in tokenizer.encode([task.middle for task in tasks])]
        written = baseline.write([task.before for task in tasks], 0, top_p=0.8)
        ended = sum(text.endswith(task.after) for task, text in zip(tasks, written, strict=True))
        forced = with_end_appended(tasks, written, counts, tokenizer)
        rows = {
            "real": perplexities(scorer, tasks, texts),
            "real, its words shuffled": perplexities(scorer, tasks, with_shuffled_middles(tasks)),
            "autoregressive, the rest put behind": perplexities(scorer, tasks, forced),
        }
        for steps in STEPS:
            samples = filled(run, tasks, counts, steps)
            rows[f"latent, {steps} steps"] = perplexities(scorer, tasks, samples)
            examples = samples[:5]
        results[name] = {"rows": rows, "autoregressive_ended_so": ended, "examples": examples}
        print(f"{name}: the autoregressive model ended so by itself {ended} times of {COUNT}")
        print("| | written | given text after it | whole |\n|---|---|---|---|")
        for row, values in rows.items():
            print(f"| {row} | " + " | ".join(f"{v:.1f}" for v in values.values()) + " |")
        print("\n".join(examples), flush=True)
    Path(out).write_text(json.dumps({"count": COUNT, "scorer": SCORER, "seed": 0, **results}))


if __name__ == "__main__":
    main(*sys.argv[1:])
