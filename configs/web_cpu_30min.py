"""The demo's recipe for half an hour: three times the steps.

Command:  ldlm train --config configs/web_cpu_30min.py --workdir runs/web_cpu_30min
Hardware: 2 CPU cores.
Result:   not measured yet.
"""

import runpy
from pathlib import Path


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    config = runpy.run_path(str(Path(__file__).with_name("web_cpu.py")))["get_config"]()
    config["train"] |= {"num_steps": 2340, "eval_every": 585, "checkpoint_every": 585}
    config["optim"] |= {"ema_decay": 0.995}
    return config
