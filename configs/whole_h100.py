"""Whole texts of 256 tokens from a real latent space, on one GPU in ten minutes.

Command:  ldlm train --config configs/whole_h100.py --workdir runs/whole_h100
Hardware: one H100, planned for ten minutes.
Result:   not run: see experiments/whole_text/.
"""


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    return {
        # A text a row, filled up: its end, and the filling after it, are learned like its words.
        "data": {
            "source": "library",
            "vocab_size": 8192,
            "window": 256,
            "packing": "pad",
            "pad_to_multiple": 256,
        },
        "text_vae": {
            "width": 384,
            "heads": 6,
            "encoder_layers": 3,
            "decoder_layers": 3,
            "latent_channels": 64,
            "dtype": "bfloat16",
        },
        "dit": {
            "width": 384,
            "heads": 6,
            "layers": 8,
            "dropout": 0.1,
            "dtype": "bfloat16",
        },
        "autoencoding": {"token_mask": 0.5, "decoder_noise": 2.0},
        "diffusion": {"self_condition": 0.5, "token_loss": 0.5, "prefix": 0.1, "infill": 0.1},
        "optim": {"learning_rate": 2e-3, "warmup_steps": 100, "ema_decay": 0.999},
        "train": {
            "num_steps": 10_000,
            "batch_size": 64,
            "eval_every": 5000,
            "checkpoint_every": 1000,
        },
        "sample": {"steps": 50, "batch_size": 250},
        # As in whole_cpu_1h.py.
        "phases": [
            {"until": 1500, "diffusion": 0.0, "kl": 1e-3},
            {"reconstruction": 0.0, "kl": 0.0, "train": ["decoder", "dit"]},
        ],
    }
