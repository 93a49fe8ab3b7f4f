"""Many passes over little text: held-out nats a token by passes, for each way to train.

Command: export PYTHONPATH=.
         python experiments/data_constrained/curve.py train SCALE SYSTEM SEED PASSES
         python experiments/data_constrained/curve.py copies SCALE SYSTEM SEED [TEXTS]
         python experiments/data_constrained/curve.py draw SCALE OUT.png
``train`` works in runs/data_constrained/ and adds a row to results/SCALE.json; started again it
goes on (a latent model) or begins anew (a baseline). Every system sees the same windows, in batches
of the same size, at a constant learning rate: one training is the whole curve.
"""

import json
import sys
from datetime import date
from pathlib import Path

import jax
import numpy as np

from experiments.baselines.sampling import Baseline
from experiments.baselines.training import KINDS
from experiments.baselines.training import train as train_baseline
from experiments.compare import workdir_of
from ldlm_jax.config import load_config, resolve
from ldlm_jax.data.dataset import Prepared, prepare
from ldlm_jax.data.pipeline import eval_batches
from ldlm_jax.data.texts import read_texts
from ldlm_jax.evals.bound import cost_of_lengths, length_nats
from ldlm_jax.evals.text_metrics import TrainingText, entropy
from ldlm_jax.sampling.config import SampleConfig
from ldlm_jax.sampling.generate import generate
from ldlm_jax.train import train as train_latent
from ldlm_jax.workdir import load_run

HERE = Path(__file__).parent

# A scale: the latent model's config and what is changed in it, and the baselines' sizes. Held-out
# text is the first 256 windows of other books, 16 batches of 16.
_TEXT = ("data.packing=pack", "data.pad_to_multiple=1")
_SINGLE_TOKENS = (
    "text_vae.encoder_layers=0", "text_vae.decoder_layers=0", "autoencoding.token_mask=0.0",
    "diffusion.token_posterior=True", "diffusion.prefix=0.0",
    "diffusion.infill=0.0", "diffusion.per_token_times=0.0",
    "optim.schedule=constant", "optim.ema_decay=0.998",
    # Chosen by the bound after ten passes, see README.md.
    "text_vae.latent_channels=4", "diffusion.time_location=0.0", "diffusion.token_variance=1e-4",
    "phases=[{'token': 2.0, 'reconstruction': 0.0, 'encoder_gradient': 1.0}]",
)  # fmt: skip
_SMALL = ("dit.width=128", "text_vae.width=128", "train.batch_size=16",
          "train.eval_batches=16")  # fmt: skip
_BFLOAT16 = ("dit.dtype=bfloat16", "text_vae.dtype=bfloat16")
SCALES = {
    # 46,000 tokens, 1.2 million parameters: two cores with bf16 units.
    "small": {
        "config": "configs/whole_cpu_1h.py",
        "data": ("data.source=0.03*web", "data.vocab_size=1024", *_TEXT),
        "latent": (*_SINGLE_TOKENS, *_SMALL, *_BFLOAT16),
        "baseline": ("width=128", "layers=6", "batch_size=16", "dtype=bfloat16"),
    },
    # 1.1 million tokens, 5 million parameters: one GPU.
    "web": {
        "config": "configs/whole_cpu_1h.py",
        "data": _TEXT,
        "latent": (*_SINGLE_TOKENS, *_BFLOAT16, "dit.width=256", "text_vae.width=256",
                   "train.batch_size=128", "train.eval_batches=2"),
        "baseline": ("width=256", "layers=6", "batch_size=128", "dtype=bfloat16"),
    },
    # 13 million tokens of prose, 24 million parameters: one GPU, in parts.
    "library": {
        "config": "configs/whole_h100.py",
        "data": _TEXT,
        "latent": (*_SINGLE_TOKENS, "train.eval_batches=2"),
        "baseline": ("width=512", "layers=8", "batch_size=256", "dtype=bfloat16"),
    },
}  # fmt: skip
_CONSTANT = ("schedule=constant", "ema_decay=0.998", "learning_rate=3e-3")
SYSTEMS = {
    "latent": ("latent",),
    "latent, dropout 0.1": ("latent", "dit.dropout=0.1"),
    "latent, dropout 0.2": ("latent", "dit.dropout=0.2"),
    "latent, dropout 0.2, a time each": (
        "latent",
        "dit.dropout=0.2",
        "diffusion.per_token_times=1.0",
    ),
    "latent, dropout 0.2, a time each, weight decay 1": (
        "latent",
        "dit.dropout=0.2",
        "diffusion.per_token_times=1.0",
        "optim.weight_decay=1.0",
    ),
    "masked": ("mdlm",),
    "masked, dropout 0.1": ("mdlm", "dropout=0.1"),
    "ar": ("ar",),
    "ar, dropout 0.1": ("ar", "dropout=0.1"),
    "ar, dropout 0.3": ("ar", "dropout=0.3"),
    "ar, weight decay 0.3": ("ar", "weight_decay=0.3"),
    "ar, weight decay 1": ("ar", "weight_decay=1.0"),
    "ar, input mask 0.2": ("ar", "input_mask=0.2"),
    "ar, input mask 0.5": ("ar", "input_mask=0.5"),
    "ar, dropout 0.3, input mask 0.5": ("ar", "dropout=0.3", "input_mask=0.5"),
    "ar, dropout 0.3, weight decay 1": ("ar", "dropout=0.3", "weight_decay=1.0"),
}


def _folder(scale: str, system: str, seed: str) -> Path:
    return workdir_of(f"data_constrained/{scale}", system, seed)


def _prepared(scale: dict) -> Prepared:
    return prepare(resolve(load_config(scale["config"], [*scale["data"]])).data)


def _length_nats(scale: dict, windows: int) -> float:
    """Nats a token that the lengths of held-out texts cost, as the evaluator ``bound`` has it."""
    prepared = _prepared(scale)
    (batch,) = eval_batches(prepared, "validation", windows, 1)
    nats = cost_of_lengths(batch["segments"], length_nats(prepared.stats["lengths"]))
    return float(nats / np.sum(batch["segments"] > 0))


def train(scale_name: str, system: str, seed: str, passes: str) -> None:
    """Train for so many passes, and add the curve to the results."""
    scale, (kind, *changes) = SCALES[scale_name], SYSTEMS[system]
    overrides = [*scale["data"], *scale["latent"]]
    experiment = resolve(load_config(scale["config"], overrides))
    batch = experiment.train.batch_size
    windows = batch * experiment.train.eval_batches
    a_pass = _prepared(scale).stats["train"]["windows"] // batch
    folder, steps = _folder(scale_name, system, seed), a_pass * int(passes)
    if kind == "latent":
        curve, size = _train_latent(scale, [*overrides, *changes], folder, steps, a_pass, seed)
    else:
        data = [*scale["data"], f"config={scale['config']}", f"seed={seed}"]
        facts = train_baseline(
            KINDS[kind], folder, steps, [*data, *scale["baseline"], *_CONSTANT, *changes],
            evaluations=int(passes), windows=windows,
        )  # fmt: skip
        # What a text's length costs: an autoregressive model pays for it with its end tokens.
        length = 0.0 if kind == "ar" else _length_nats(scale, windows)
        curve = [(row["step"], row["validation"] + length) for row in facts["log"]]
        size = facts["parameters"]
    curve = [(round(step / a_pass, 2), round(nats, 4)) for step, nats in curve]
    best = min(curve, key=lambda point: point[1])
    row = {"seed": int(seed), "parameters": size, "date": str(date.today()), "best": best,
           "curve": curve}  # fmt: skip
    _record(scale_name, f"{system}, seed {seed}", row)
    print(system, "best after", best[0], "passes:", best[1], "nats a token")


def _train_latent(scale: dict, overrides: list[str], folder: Path, steps: int, a_pass: int,
                  seed: str) -> tuple[list, int]:  # fmt: skip
    """Train, and read what the evaluator ``bound`` found; also the number of parameters."""
    every = a_pass * max(1, steps // a_pass // 20)
    more = [f"train.num_steps={steps}", f"train.seed={seed}", "train.evals=('bound',)",
            f"train.eval_every={every}", f"train.checkpoint_every={every}"]  # fmt: skip
    train_latent(load_config(scale["config"], [*overrides, *more]), str(folder))
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    curve = [(line["step"], line["bound/nats"] + line["bound/length"])
             for line in lines if "bound/nats" in line]  # fmt: skip
    params = load_run(folder).generator.params
    return curve, sum(x.size for x in jax.tree.leaves(params))


def copies(scale_name: str, system: str, seed: str, count: str = "300") -> None:
    """Write texts, and count which runs of words stand in the training text."""
    scale, (kind, *_) = SCALES[scale_name], SYSTEMS[system]
    folder, number = _folder(scale_name, system, seed), int(count)
    if kind == "latent":
        generator = load_run(folder).generator
        config = SampleConfig(steps=64, solver="ancestral", batch_size=50)
        texts = [s.text for s in generate(generator, config, 0, num_samples=number)]
    else:
        texts = Baseline.load(kind, folder).write([""] * number, 0)
    train_text = TrainingText(read_texts(_prepared(scale).text, "train"))
    row = {
        "texts": number,
        "copied_8": train_text.share(texts),
        "copied_longest": float(np.mean([train_text.longest(text) for text in texts])),
        "word_entropy": entropy([text.split() for text in texts]),
        "examples": texts[:3],
    }
    _record(scale_name, f"{system}, seed {seed}", {"copies": row})
    print(system, row)


def _record(scale_name: str, name: str, row: dict) -> None:
    path = HERE / "results" / f"{scale_name}.json"
    path.parent.mkdir(exist_ok=True)
    rows = json.loads(path.read_text()) if path.exists() else {}
    rows[name] = rows.get(name, {}) | row
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in rows.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def draw(scale_name: str, out: str) -> None:
    """Print the table of bests, and draw the curves."""
    import matplotlib.pyplot as plt

    rows = json.loads((HERE / "results" / f"{scale_name}.json").read_text())
    print("| system | best, nats a token | after passes | at the last pass |\n|---|---|---|---|")
    figure, axes = plt.subplots(figsize=(8, 4.2))
    for name, row in rows.items():
        passes, nats = np.array(row["curve"]).T
        print(f"| {name} | {row['best'][1]:.3f} | {row['best'][0]:g} | {nats[-1]:.3f} after "
              f"{passes[-1]:g} |")  # fmt: skip
        kind = name.split(",")[0]
        look = {"latent": "-", "masked": "--", "ar": ":"}[kind]
        axes.plot(passes, nats, look, label=name.removesuffix(", seed 0"))
    axes.set(xscale="log", xlabel="passes over the training text",
             ylabel="nats a held-out token (diffusion: bounds)")  # fmt: skip
    axes.set_ylim(top=min(axes.get_ylim()[1], 6.5))
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    {"train": train, "copies": copies, "draw": draw}[sys.argv[1]](*sys.argv[2:])
