"""The demo's recipe for half an hour: one block more, eight times the steps, and dropout.

Command:  ldlm train --config configs/web_cpu_30min.py --workdir runs/web_cpu_30min
Hardware: 2 virtual CPU cores with bf16 matrix units (Intel Xeon).
Result:   12,400 steps take as long as 15,800 of the autoregressive model of its size, of which half
          an hour holds 17,000 (experiments/half_hour/step_time.json). Over 832 windows (`ldlm eval
          --evals context --batches 52`; 25 November 2026, seed 0): context/nats_blocks_of_one 3.85,
          trained just before the last change of that date (experiments/recipe/) and judged with
          it in experiments/half_hour/.
"""

import runpy
from pathlib import Path


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    config = runpy.run_path(str(Path(__file__).with_name("web_cpu.py")))["get_config"]()
    # Ten times over the corpus: without dropout the model is surer than it may be.
    config["dit"] |= {"layers": 4, "dropout": 0.2}
    config["train"] |= {"num_steps": 12400, "eval_every": 12400, "checkpoint_every": 1000}
    config["phases"][0]["until"] = 9500
    config["optim"] |= {"ema_decay": 0.995}
    return config
