"""Train a baseline, measure its texts, or print its loss on held-out text.

Command: export PYTHONPATH=.
         python experiments/baselines/run.py train ar|mdlm WORKDIR STEPS [key=value ...]
           (keys: those of the optimizer; batch_size, seed, layers, width, dropout; config, whose
           data it reads; section.key of that config. With teacher.KEY, alignment.KEY and
           phases.0.alignment the baseline is aligned as that config's model is.)
         python experiments/baselines/run.py judge ar|mdlm WORKDIR OUT.json [COUNT [SPLIT]] \
           [top_p=... temperature=... guidance=... steps=... batch=...]
         python experiments/baselines/run.py write ar|mdlm WORKDIR OUT.jsonl [COUNT] [top_p=...]
           (for experiments/whole_text/judge.py, where the scorer is elsewhere)
         python experiments/baselines/run.py nats ar|mdlm WORKDIR validation|test
"""

import json
import sys
from pathlib import Path

from experiments.baselines.sampling import Baseline
from experiments.baselines.training import KINDS, held_out_loss, train
from ldlm_jax.evals.quality import PROMPTS, QualityEvaluator, beginnings, named

SCORER = "smollm2-135m"


def judge(kind: str, workdir: str, out: str, count: str = "1000", split: str = "validation",
          **how: float) -> None:  # fmt: skip
    """Write texts and continuations as ``ldlm eval --evals quality`` does, and measure them."""
    baseline, number = Baseline.load(kind, workdir), int(count)
    evaluator = QualityEvaluator(baseline.prepared, SCORER, split, baseline.window, number)
    rows = {"unconditional": evaluator.measure(baseline.write([""] * number, 0, **how))}
    for share in PROMPTS:
        prompts = beginnings(evaluator.held_out, share)
        rows[f"continuation_{share:g}"] = evaluator.measure(baseline.write(prompts, 0, **how))
    result = {"kind": kind, "how": how, "split": split, "num_samples": number, "seed": 0,
              "scorer": SCORER, "sampling_dtype": baseline.model.dtype,
              "texts": baseline.write([""] * 8, 1, **how), "results": named(rows)}  # fmt: skip
    Path(out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def write(kind: str, workdir: str, out: str, count: str = "1000", **how: float) -> None:
    """Write free texts as JSONL, as ``ldlm sample --jsonl`` does."""
    texts = Baseline.load(kind, workdir).write([""] * int(count), 0, **how)
    Path(out).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def nats(kind: str, workdir: str, split: str) -> None:
    """Print the mean loss a token of held-out text."""
    baseline = Baseline.load(kind, workdir)
    loss = held_out_loss(KINDS[kind], baseline.model, baseline.prepared, split)
    print(f"{split} {loss(baseline.params):.4f}")


def main(command: str, kind: str, workdir: str, *rest: str) -> None:
    """Run one of the commands."""
    if command == "train":
        train(KINDS[kind], Path(workdir), int(rest[0]), list(rest[1:]))
    elif command == "nats":
        nats(kind, workdir, *rest)
    else:
        plain = [word for word in rest if "=" not in word]
        options = dict(w.split("=") for w in rest if "=" in w)
        how = {k: int(v) if k in ("steps", "batch") else float(v) for k, v in options.items()}
        {"judge": judge, "write": write}[command](kind, workdir, *plain, **how)


if __name__ == "__main__":
    main(*sys.argv[1:])
