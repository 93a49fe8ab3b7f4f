"""The model card: what a model was made of, how, how good it is, and how to use it."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax

from ldlm_jax.data.corpora import REGISTRY
from ldlm_jax.data.sources import weighted_parts
from ldlm_jax.puzzles.registry import TASKS
from ldlm_jax.sampling.config import SampleConfig, knobs
from ldlm_jax.workdir import LoadedRun

_MEASURED = ("reconstruction/", "denoising/", "context/", "samples/", "quality/", "puzzles/")
# Lines of Python for a model of text, and of puzzles.
_TEXT = 'for sample in model.generate("The", num_samples=4):\n    print(sample.text)'
_PUZZLE = (
    'puzzle = "PUZZLE"  # with _ for each symbol to find\n'
    'print(model.infill(puzzle.replace("_", "____{1}"))[0].text)'
)


def model_card(run: LoadedRun) -> str:
    """The card of a run's model, in Markdown with the Hub's front matter."""
    experiment = run.experiment
    name = run.path.resolve().name
    how = "blocks" if experiment.diffusion.block_size else "whole texts"
    size = sum(x.size for x in jax.tree.leaves(run.average.ema)) / 1e6
    puzzles = experiment.data.source in TASKS
    flag, example = (" --puzzle PUZZLE", _PUZZLE) if puzzles else ("", _TEXT)
    parts = [
        "---\nlibrary_name: ldlm_jax\npipeline_tag: text-generation\n"
        "tags:\n- latent-diffusion\n- jax\n---",
        f"# {name}",
        f"A continuous latent diffusion language model of {size:.2f} million parameters. It writes "
        f"{how} in windows of {experiment.data.window} tokens.",
        "## Use",
        f'```python\nfrom ldlm_jax import load\n\nmodel = load("{name}")\n{example}\n```',
        f"Or `ldlm sample --model {name}{flag}` and `ldlm serve --model {name}`.",
        "## Data and licence",
        _data(run),
        "## Recipe",
        _table(_recipe(run)),
    ]
    measures = last_measures(run.path / "metrics.jsonl")
    if measures:
        parts += [
            f"## Measures\n\nOn held-out text of the training corpus, at step {measures[0]}.",
            _table({key: f"{value:.4f}" for key, value in measures[1].items()}),
        ]
    return "\n\n".join(parts) + "\n"


def _data(run: LoadedRun) -> str:
    lines = []
    for _, part in weighted_parts(run.experiment.data.source):
        if part in REGISTRY:
            lines.append(f"- `{part}`: {REGISTRY[part].description}.")
        else:
            lines.append(f"- `{Path(part).name}`: text of the trainer, under its own terms.")
    if run.experiment.backbone.model:
        backbone = Path(run.experiment.backbone.model).name
        lines.append(f"- The weights of the frozen model `{backbone}` are not part of this folder.")
    lines.append("\nThe licence of the model follows from that of its data.")
    return "\n".join(lines)


def _recipe(run: LoadedRun) -> dict[str, object]:
    experiment, vae, dit = run.experiment, run.experiment.text_vae, run.experiment.dit
    recipe = {
        "steps": int(run.average.step),
        "rows a step": experiment.train.batch_size,
        "optimizer": f"{experiment.optim.name}, learning rate {experiment.optim.learning_rate:g}",
        "seed": experiment.train.seed,
        "tokens in the vocabulary": run.tokenizer.vocab_size,
        "encoder, decoder": f"{vae['encoder_layers']} and {vae['decoder_layers']} layers",
        "latents": f"{vae['latent_channels']} channels, {vae['tokens_per_latent']} token(s) each",
        "DiT": f"{dit['layers']} layers of width {dit['width']}",
        "block": experiment.diffusion.block_size or "whole text",
        "sampling defaults": ", ".join(_defaults(experiment.sample)),
    }
    if experiment.teacher.model:
        recipe["teacher"] = Path(experiment.teacher.model).name
    return recipe


def _defaults(sample: SampleConfig) -> Iterator[str]:
    """Steps, solver, and what else the trainer chose."""
    yield f"{sample.steps} steps"
    yield sample.solver
    for name, field in knobs().items():
        value = getattr(sample, name)
        if value != field.default and name not in ("steps", "solver", "batch_size"):
            yield f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"


def last_measures(file: Path) -> tuple[int, dict[str, float]] | None:
    """Step and numbers of the last evaluation of a run's metrics, or None if there is none."""
    if not file.is_file():
        return None
    found = None
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # a run was stopped while it wrote
            continue
        numbers = {
            key: value
            for key, value in row.items()
            if key.startswith(_MEASURED) and isinstance(value, (int, float))
        }
        if numbers:
            found = int(row["step"]), numbers
    return found


def _table(rows: dict[str, object]) -> str:
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    )
