"""The demo's recipe, then a phase that teaches to write in few steps.

Command:  ldlm train --config configs/web_few_steps.py --workdir runs/web_few_steps
Hardware: 2 virtual CPU cores with bf16 vector units (AMD EPYC).
Result:   five denoising steps are as good as twenty, with the last phase and without (25 November
          2026, seed 0; experiments/few_steps/; the demo's recipe of that day, of one phase).
"""

import runpy
from pathlib import Path


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    config = runpy.run_path(str(Path(__file__).with_name("web_cpu.py")))["get_config"]()
    first, phase = config["phases"]
    # Latents stay where they are, so that what is near can teach what is far.
    last = phase | {"encoder_gradient": 0.0, "consistency": 1.0, "train": ("dit", "decoder")}
    config["phases"] = [first, phase | {"until": 1500}, last]
    config["consistency"] = {"steps": 10}
    config["train"] |= {"num_steps": 1900, "eval_every": 1900, "checkpoint_every": 500}
    return config
