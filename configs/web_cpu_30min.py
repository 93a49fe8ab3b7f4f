"""The demo's recipe for half an hour: the same sections, three times the steps.

Command:  ldlm train --config configs/web_cpu_30min.py --workdir runs/web_cpu_30min
Hardware: 2 CPU cores with bf16 matrix units (Sapphire Rapids class).
Result:   not measured yet.
"""

import runpy
from pathlib import Path


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    config = runpy.run_path(str(Path(__file__).with_name("web_cpu.py")))["get_config"]()
    config["train"] |= {"num_steps": 1900, "eval_every": 475, "checkpoint_every": 475}
    config["optim"] |= {"ema_decay": 0.995}
    config["phases"][0]["until"] = 300
    return config
