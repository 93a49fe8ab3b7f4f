"""Latents between the blocks of a frozen SmolLM2-135M: only a bottleneck and the DiT are trained.

Command:  make models
          ldlm train --config configs/web_backbone.py --workdir runs/web_backbone
Hardware: 2 virtual CPU cores with bf16 vector units (AMD EPYC).
Result:   see experiments/backbone/.

The first 12 of 30 blocks read; the decoder hands hidden states made of latents to the other 18
and to the head. Texts are in the model's own 49,152 tokens. Reconstruction is learned first, alone;
then the latents stay where they are and the DiT learns to write them.
"""


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    return {
        "data": {"source": "web", "tokenizer": "smollm2-135m", "window": 64},
        "backbone": {"model": "smollm2-135m", "layer": 12},
        "text_vae": {
            "width": 192,
            "encoder_layers": 0,
            "decoder_layers": 1,
            "latent_channels": 64,
            "dtype": "bfloat16",
        },
        "dit": {"width": 256, "layers": 6, "dtype": "bfloat16"},
        "autoencoding": {"token_mask": 0.0, "decoder_noise": 1.0},
        "optim": {"learning_rate": 5e-3, "warmup_steps": 20, "ema_decay": 0.99},
        "train": {
            "num_steps": 1260,
            "batch_size": 16,
            "eval_every": 420,
            "checkpoint_every": 180,
            "log_every": 25,
        },
        "sample": {"steps": 20, "solver": "ancestral", "top_p": 0.9},
        "phases": [
            {"until": 360, "diffusion": 0.0, "kl": 1e-3},
            {"until": 1160, "reconstruction": 0.0, "kl": 0.0, "train": ("dit",)},
            # Readout: the decoder learns to read what the DiT estimates.
            {
                "token": 1.0,
                "diffusion": 0.0,
                "reconstruction": 0.0,
                "kl": 0.0,
                "time_location": 0.0,
                "train": ("decoder",),
            },
        ],
    }
