"""Sudoku of side 9 with 28M parameters, the size of published results; in parts on one GPU.

Command:  ldlm train --config configs/sudoku_28m.py --workdir runs/sudoku_28m
          (the same command again goes on from the last checkpoint)
Hardware: one H100, some parts of eight minutes.
Result:   not run.
"""

import runpy
from pathlib import Path


def get_config() -> dict:
    """The config of ``sudoku.py``, wider and deeper and trained for longer."""
    config = runpy.run_path(str(Path(__file__).with_name("sudoku.py")))["get_config"]()
    config["text_vae"]["width"] = 512
    config["dit"] |= {"width": 512, "heads": 8, "layers": 9}
    config["optim"]["learning_rate"] = 1e-3
    config["train"]["num_steps"] = 50000
    return config
