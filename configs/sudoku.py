"""Sudoku of side 9 with 6M parameters: whole grids out of noise, for one GPU.

Command:  ldlm train --config configs/sudoku.py --workdir runs/sudoku
          ldlm eval --workdir runs/sudoku --evals puzzles --split test --num-samples 1000
            --levels "30 given" easy hard --step-counts 1 2 5 10 20 50 100 180
Hardware: one H100. 35 ms a step on 28 November 2026, twelve minutes in all; faster attention and
          layers without a loop came after that.
Result:   not run to its end.
"""

import runpy
from pathlib import Path


def get_config() -> dict:
    """The config of ``sudoku_cpu.py`` for larger grids, wider, deeper and with larger batches."""
    config = runpy.run_path(str(Path(__file__).with_name("sudoku_cpu.py")))["get_config"]()
    config["data"] |= {"source": "sudoku", "window": 82}
    config["text_vae"] |= {"width": 256, "dtype": "bfloat16"}
    config["dit"] |= {"width": 256, "layers": 8, "dtype": "bfloat16", "attention": "cudnn"}
    config["optim"] |= {"learning_rate": 2e-3, "warmup_steps": 200, "ema_decay": 0.999}
    config["train"] |= {
        "num_steps": 20000,
        "batch_size": 512,
        "eval_every": 5000,
        "eval_samples": 256,
        "eval_steps": (5, 20, 100),
    }
    config["sample"] |= {"steps": 100, "batch_size": 256}
    return config
