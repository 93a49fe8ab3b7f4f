"""Whole texts of 256 tokens from a real latent space, on one GPU in ten minutes.

Command:  ldlm train --config configs/whole_h100.py --workdir runs/whole_h100
Hardware: one H100, planned for ten minutes.
Result:   not run: see experiments/whole_text/.
"""

import runpy
from pathlib import Path


def get_config() -> dict:
    """The config of ``whole_cpu_1h.py`` for longer texts, wider, deeper and with larger batches."""
    config = runpy.run_path(str(Path(__file__).with_name("whole_cpu_1h.py")))["get_config"]()
    config["data"] |= {
        "source": "library",
        "vocab_size": 8192,
        "window": 256,
        # Three quarters of all documents are shorter than 100 tokens: several share a window. The
        # filling up to the next 32 is learned, with the text's end.
        "packing": "pack",
        "pad_to_multiple": 32,
    }
    config["text_vae"] |= {
        "width": 384,
        "heads": 6,
        "encoder_layers": 3,
        "decoder_layers": 3,
        "dtype": "bfloat16",
        "attention": "cudnn",
    }
    # Without the bias by offset, a card's own kernels serve attention.
    config["dit"] = {
        "width": 384,
        "heads": 6,
        "layers": 8,
        "dropout": 0.1,
        "dtype": "bfloat16",
        "attention": "cudnn",
    }
    config["optim"] |= {"learning_rate": 2e-3, "warmup_steps": 100, "ema_decay": 0.999}
    config["train"] |= {
        "num_steps": 10_000,
        "batch_size": 64,
        "eval_every": 5000,
        "checkpoint_every": 1000,
    }
    config["sample"] |= {"batch_size": 250}
    config["phases"][0]["until"] = 1500
    return config
