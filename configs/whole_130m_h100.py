"""Whole texts of 256 tokens, about 130M parameters in the denoiser, on one GPU in two hours.

Command:  pip install '.[cuda]'
          ldlm train --config configs/whole_130m_h100.py --workdir runs/whole_130m
          (the same command again goes on from the last checkpoint)
Hardware: one H100. Planned, not run.
Result:   none yet.
"""

import runpy
from pathlib import Path


def get_config() -> dict:
    """The config of ``whole_h100.py``, wider, deeper and over both larger corpora."""
    config = runpy.run_path(str(Path(__file__).with_name("whole_h100.py")))["get_config"]()
    config["data"] |= {"source": "library+manuals", "vocab_size": 16_384}
    config["text_vae"] |= {"width": 768, "heads": 12, "encoder_layers": 4, "decoder_layers": 4}
    # 27M tokens are seen many times: hence the dropout.
    config["dit"] |= {"width": 1024, "heads": 16, "layers": 10, "dropout": 0.2}
    config["optim"] |= {"learning_rate": 1e-3, "warmup_steps": 500, "ema_decay": 0.9995}
    # So many rows that the optimizer's own products are a small part of a step.
    config["train"] |= {"num_steps": 20_000, "batch_size": 256}
    config["phases"][0]["until"] = 2500
    return config
