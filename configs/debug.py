"""Seconds: a tiny model for tests and for trying a change.

Command:  ldlm train --config configs/debug.py --workdir runs/debug
Hardware: any; about 20 s on 2 CPU cores, most of it compilation.
Result:   nothing worth reading; losses fall.
"""


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    return {
        "data": {"source": "web", "vocab_size": 320, "window": 32},
        "text_vae": {
            "width": 32,
            "heads": 2,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "latent_channels": 8,
        },
        "dit": {"width": 32, "heads": 2, "layers": 2},
        "optim": {"name": "adamw", "learning_rate": 3e-3, "warmup_steps": 5},
        "train": {
            "num_steps": 20,
            "batch_size": 8,
            "log_every": 5,
            "eval_every": 10,
            "eval_batches": 1,
            "checkpoint_every": 10,
        },
        "sample": {"steps": 4, "batch_size": 8},
        "phases": [{"until": 10, "diffusion": 0.0}, {"encoder_gradient": 0.1}],
    }
