"""The demo's recipe for half an hour: one block more, nine times the steps, and dropout.

Command:  ldlm train --config configs/web_cpu_30min.py --workdir runs/web_cpu_30min
Hardware: 2 virtual CPU cores with bf16 vector units (AMD EPYC).
Result:   13,000 steps take as long as 17,000 of the autoregressive model of its size, which is half
          an hour of a slower machine (experiments/half_hour/step_time.json). Over 832 windows
          (`ldlm eval --evals context --batches 52`; 25 November 2026, seed 0):
          context/nats_blocks_of_one 3.839, with a teacher 3.797. Texts: experiments/half_hour/.
"""

import runpy
from pathlib import Path


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    config = runpy.run_path(str(Path(__file__).with_name("web_cpu.py")))["get_config"]()
    # Ten times over the corpus: without dropout the model is surer than it may be.
    config["dit"] |= {"layers": 4, "dropout": 0.2}
    config["train"] |= {"num_steps": 13000, "eval_every": 13000, "checkpoint_every": 1000}
    config["phases"][0]["until"] = 11000
    config["optim"] |= {"ema_decay": 0.995}
    return config
