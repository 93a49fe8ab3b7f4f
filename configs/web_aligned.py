"""The demo with its encoder aligned with a masked language model of our own.

Command:  ldlm train --config configs/web_masked_lm.py --workdir runs/web_masked_lm
          ldlm train --config configs/web_aligned.py --workdir runs/web_aligned
Hardware: 2 CPU cores with bf16 matrix units (Sapphire Rapids class).
Result:   not measured yet: a real teacher's effect on text is an open question here.
"""

import runpy
from pathlib import Path


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    config = runpy.run_path(str(Path(__file__).with_name("web_cpu.py")))["get_config"]()
    config["text_vae"] |= {"encoder_layers": 1}
    config["teacher"] = {"run": "runs/web_masked_lm"}
    config["phases"][0]["alignment"] = 1.0
    return config
