"""A model of the puzzles of tasks.py: a byte a token, blocks of eight.

Command: ldlm train --config experiments/planning/config.py --workdir runs/puzzles
"""

import runpy
from pathlib import Path


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    demo = Path(__file__).parents[2] / "configs" / "web_cpu.py"
    config = runpy.run_path(str(demo))["get_config"]()
    config["data"] |= {"source": "corpora/puzzles.jsonl", "vocab_size": 259, "pad_to_multiple": 8}
    config["text_vae"] |= {"width": 128, "latent_channels": 64}
    config["dit"] |= {"width": 128, "layers": 4}
    config["diffusion"] |= {
        "block_size": 8, "time_location": None, "prefix": 0.2, "suffix": 0.2, "infill": 0.3,
        "random_spans": 0.1,
    }  # fmt: skip
    config["train"] |= {"num_steps": 2000, "batch_size": 32, "eval_every": 2000}
    config["train"] |= {"checkpoint_every": 1000, "evals": ("denoising",)}
    config["sample"] = {"steps": 20, "solver": "euler", "temperature": 0.5, "time_offset": 0.0}
    return config
