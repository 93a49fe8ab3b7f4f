"""The arms of the comparison: whose features the encoder is aligned with, all else equal."""

from ldlm_jax.config import load_config

CONFIG = "configs/web_aligned.py"
STEPS = 400
_MODEL = ["teacher.run=''", "teacher.dtype=bfloat16"]
ARMS = {
    "none": ["teacher.run=''", "phases=[{'reconstruction': 0.2, 'encoder_gradient': 1.0}]"],
    "own masked LM": [],
    "SmolLM2-135M, layer 10": [*_MODEL, "teacher.model=smollm2-135m", "teacher.layer=10"],
    "SmolLM2-135M, layer 20": [*_MODEL, "teacher.model=smollm2-135m", "teacher.layer=20"],
    "MiniLM-L6, last layer": [*_MODEL, "teacher.model=minilm-l6", "teacher.layer=-1"],
}


def config_of(arm: str, *overrides: str):
    """The config of an arm."""
    short = [
        f"train.num_steps={STEPS}", f"train.eval_every={STEPS}", f"train.checkpoint_every={STEPS}",
        "train.eval_batches=16", "train.evals=('reconstruction','denoising')",
    ]  # fmt: skip
    return load_config(CONFIG, [*short, *ARMS[arm], *overrides])
