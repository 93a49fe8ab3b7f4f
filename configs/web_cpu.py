"""The demo: World English Bible, one verse a document, ten minutes on two CPU cores.

Command:  ldlm train --config configs/web_cpu.py --workdir runs/web_cpu
Hardware: 2 CPU cores with bf16 matrix units (Sapphire Rapids class).
Result:   580 steps at 4,950 tokens/s, about 8 minutes (23 November 2026, seed 0). Clean
          reconstruction 1.000, denoising/accuracy_mean 0.814; samples hold phrases, not
          sentences. Trigram perplexity of 128 samples at 100 steps 5,545 with self-guidance 1.5
          (distinct-2 0.865, word entropy 5.72), 7,386 without (0.893, 5.81).

How it was chosen: experiments/recipe/.
"""


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    return {
        "data": {"source": "web", "vocab_size": 4096, "window": 64, "round_to": 4},
        # The decoder reads the DiT's trunk: what the first phase teaches it is not lost.
        "text_vae": {
            "width": 256,
            "heads": 4,
            "encoder_layers": 1,
            "decoder_layers": 0,
            "latent_channels": 128,
            "dtype": "bfloat16",
        },
        "dit": {"width": 256, "heads": 4, "layers": 4, "time_tokens": 0, "dtype": "bfloat16"},
        "autoencoding": {"token_mask": 0.3, "decoder_noise": 4.0, "latent_dropout": 0.1},
        "diffusion": {"block_size": 4, "token_loss": 0.5, "prefix": 0.1, "infill": 0.0},
        "optim": {
            "name": "adamw",
            "learning_rate": 2e-3,
            "warmup_steps": 50,
            "schedule": "linear",
            "ema_decay": 0.99,
        },
        "train": {
            "num_steps": 580,
            "batch_size": 32,
            "eval_every": 580,
            "checkpoint_every": 290,
        },
        "sample": {"steps": 50, "churn": 2.0},
        # First the autoencoder; then the denoiser, in the latents of a frozen encoder.
        "phases": [
            {"until": 180, "diffusion": 0.0},
            {"reconstruction": 0.0, "kl": 0.0, "train": ["dit", "decoder"]},
        ],
    }
