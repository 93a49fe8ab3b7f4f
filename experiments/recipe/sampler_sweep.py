"""Score free texts of one run under several settings of the sampler, beside real text.

Command: PYTHONPATH=. python experiments/recipe/sampler_sweep.py RUN OUT.json SAMPLES \
           "steps=20 temperature=0.7" "steps=20 temperature=1 top_p=0.9" ...
"""

import json
import sys
from dataclasses import replace

from ldlm_jax.config import literal
from ldlm_jax.data.dataset import prepare
from ldlm_jax.evals.quality import QualityEvaluator, headline
from ldlm_jax.sampling.config import SampleConfig
from ldlm_jax.sampling.generate import generate
from ldlm_jax.workdir import load_run

SEED = 1


def changed(sample: SampleConfig, setting: str) -> SampleConfig:
    """The sampling section of a run, with the values that a setting names."""
    changes = dict(part.split("=") for part in setting.split())
    changes = {name: literal(value) for name, value in changes.items()}
    return replace(sample, batch_size=64, **changes)


def main(workdir: str, out: str, num_samples: str, *settings: str) -> None:
    """Generate and score ``num_samples`` texts under each setting."""
    count, run = int(num_samples), load_run(workdir)
    evaluator = QualityEvaluator(
        prepare(run.experiment.data), "smollm2-135m", "validation", run.generator.window, count
    )
    rows = {name: row for name, row in evaluator.real_text().items() if name != "shuffled"}
    _show(rows)
    for setting in settings:
        config = changed(run.experiment.sample, setting)
        texts = [s.text for s in generate(run.generator, config, SEED, num_samples=count)]
        rows[setting] = evaluator.measure(texts)
        _show({setting: rows[setting]})
        with open(out, "w") as file:
            record = {"workdir": workdir, "seed": SEED, "num_samples": count, "rows": rows}
            json.dump(record, file, indent=1)


def _show(rows: dict) -> None:
    for name, row in rows.items():
        print(f"{name:45} {headline(row)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
