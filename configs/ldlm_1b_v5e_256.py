"""About one billion parameters in the denoiser, a TPU v5e slice of 256 chips.

Command:  ldlm train --config configs/ldlm_1b_v5e_256.py --workdir /mnt/shared/ldlm_1b
          Data: a folder of web text as .parquet (set data.source to it); prepare it once
          beforehand with `ldlm data --config ...`.
Hardware: TPU v5e-256 (16x16). Planned, not run: experiments/scale/.
Result:   none yet.

Parameters, optimizer and average are split over the 16 chips of a row of the torus (split over all
256 the parts would be too thin for the compiler to sum gradients where they lie); rows are split
over all, 16 a chip.
"""


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    return {
        "data": {"source": "web_text/", "vocab_size": 65_536, "window": 1024},
        "text_vae": {
            "width": 1024,
            "heads": 8,
            "encoder_layers": 6,
            "decoder_layers": 6,
            "latent_channels": 64,
            "dtype": "bfloat16",
            "attention": "splash",
            "remat": "attention",
        },
        "dit": {
            "width": 2560,
            "heads": 20,
            "layers": 13,
            "time_tokens": 0,
            "dtype": "bfloat16",
            "attention": "splash",
            "remat": "attention",
        },
        "autoencoding": {"token_mask": 0.3, "decoder_noise": 2.0},
        "diffusion": {"self_condition": 0.5, "prefix": 0.3, "infill": 0.2},
        "optim": {
            "name": "adamw",
            "learning_rate": 4e-4,
            "warmup_steps": 2000,
            "schedule": "cosine",
            "ema_decay": 0.9999,
        },
        "train": {
            "num_steps": 300_000,
            "batch_size": 4096,
            "logit_parts": 8,
            "log_every": 100,
            "eval_every": 5000,
            "eval_batches": 8,
            "checkpoint_every": 2500,
            "keep_last": 3,
            "keep_every": 50_000,
        },
        "sample": {"steps": 50, "batch_size": 256},
        "mesh": {"data": -1, "fsdp": 16},
        "phases": [
            {"until": 50_000, "diffusion": 0.0},
            {"until": -1, "reconstruction": 0.1, "kl": 1e-5, "train": ["decoder", "dit"]},
        ],
    }
