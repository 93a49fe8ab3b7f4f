"""Countdown with four numbers, 6M parameters: the answer as a whole out of noise, for one GPU.

Command:  ldlm train --config configs/countdown.py --workdir runs/countdown
          (data.source=countdown5 for five numbers)
Hardware: one H100, planned for eight minutes.
Result:   not run.
"""

import runpy
from pathlib import Path


def get_config() -> dict:
    """The config of ``sudoku.py``, with questions that are given as a beginning."""
    config = runpy.run_path(str(Path(__file__).with_name("sudoku.py")))["get_config"]()
    # Ends and what is behind them are tokens like others: the model finds the answer's length.
    config["data"] |= {"source": "countdown4", "window": 72, "pad_to_multiple": 72}
    config["diffusion"] |= {"random_spans": 0.0, "prefix": 0.95}
    return config
