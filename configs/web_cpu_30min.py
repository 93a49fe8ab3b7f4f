"""The demo's recipe for half an hour: one block more, and twice the steps and more.

Command:  ldlm train --config configs/web_cpu_30min.py --workdir runs/web_cpu_30min
Hardware: 2 CPU cores.
Result:   not measured yet.
"""

import runpy
from pathlib import Path


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    config = runpy.run_path(str(Path(__file__).with_name("web_cpu.py")))["get_config"]()
    config["dit"] |= {"layers": 4}
    config["train"] |= {"num_steps": 2340, "eval_every": 1170, "checkpoint_every": 585}
    config["optim"] |= {"ema_decay": 0.995}
    return config
