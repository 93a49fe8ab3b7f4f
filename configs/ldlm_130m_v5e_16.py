"""About 130M parameters in the denoiser, OpenWebText, one TPU v5e slice of 16 chips.

Command:  ldlm train --config configs/ldlm_130m_v5e_16.py --workdir /mnt/shared/ldlm_130m
          Data: any folder of OpenWebText as .jsonl or .parquet (set data.source to it), or the
          TFDS dataset by name; prepare it once beforehand with `ldlm data --config ...`.
Hardware: TPU v5e-16 (4x4). Planned, not run: experiments/scale/.
Result:   none yet.

Latents: 64 channels, one a token (TextLDM's optimum); the law of times follows the width. Known
prefixes and holes are trained from the start, guidance through condition dropout. Few wide blocks:
beside their products, what a block does element by element then costs less. So few are compiled one
by one, and 24 rows a chip leave room for all that the backward pass needs: nothing is computed
twice.
"""


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    return {
        "data": {"source": "tfds:openwebtext", "vocab_size": 32_768, "window": 1024},
        "text_vae": {
            "width": 1024,
            "heads": 8,
            "encoder_layers": 4,
            "decoder_layers": 4,
            "mlp_ratio": 4.0,
            "latent_channels": 64,
            "dtype": "bfloat16",
            "attention": "splash",
        },
        "dit": {
            "width": 1536,
            "heads": 12,
            "layers": 5,
            "time_tokens": 0,
            "dtype": "bfloat16",
            "attention": "splash",
        },
        "autoencoding": {"token_mask": 0.3, "decoder_noise": 2.0},
        "diffusion": {"self_condition": 0.5, "prefix": 0.3, "infill": 0.2},
        "optim": {
            "name": "muon",
            "learning_rate": 1e-3,
            "warmup_steps": 2000,
            "schedule": "cosine",
            "ema_decay": 0.9999,
        },
        "train": {
            "num_steps": 300_000,
            "batch_size": 384,
            "log_every": 100,
            "eval_every": 5000,
            "eval_batches": 8,
            "checkpoint_every": 5000,
            "keep_last": 3,
            "keep_every": 50_000,
        },
        "sample": {"steps": 50, "batch_size": 16},
        # All chips hold a share of parameters and optimizer.
        "mesh": {"data": 1, "fsdp": -1},
        "phases": [
            {"until": 50_000, "diffusion": 0.0},
            {"until": -1, "reconstruction": 0.1, "kl": 1e-5, "train": ["decoder", "dit"]},
        ],
    }
