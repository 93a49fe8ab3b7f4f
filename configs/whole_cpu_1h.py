"""Whole verses from a real latent space: a TextVAE that sees context, and a DiT over the window.

Command:  ldlm train --config configs/whole_cpu_1h.py --workdir runs/whole_cpu_1h
Hardware: 2 virtual CPU cores, an hour.
Result:   no text yet after 3,003 steps; see experiments/whole_text/.
"""


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    return {
        # A verse a row, filled up: its end, and the filling after it, are learned like its words.
        "data": {
            "source": "web",
            "vocab_size": 4096,
            "window": 64,
            "packing": "pad",
            "pad_to_multiple": 64,
        },
        "text_vae": {
            "width": 192,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "latent_channels": 64,
        },
        "dit": {"width": 192, "layers": 6, "time_tokens": 0, "offset_radius": 4},
        # Up to half of the tokens are masked for the encoder, so that a latent says what stands
        # around it, too; and the decoder learns to read latents that are far off.
        "autoencoding": {"token_mask": 0.5, "decoder_noise": 2.0},
        "diffusion": {"self_condition": 0.5, "prefix": 0.1, "infill": 0.1},
        "optim": {"learning_rate": 3e-3, "warmup_steps": 50, "ema_decay": 0.995},
        "train": {
            "num_steps": 4000,
            "batch_size": 16,
            "eval_every": 2000,
            "checkpoint_every": 500,
        },
        "sample": {"steps": 50},
        # First the space. Then the denoiser, and the decoder with it: it learns to read what the
        # denoiser estimates, beside what the encoder says.
        "phases": [
            {"until": 600, "diffusion": 0.0, "kl": 1e-3},
            {"token": 0.5, "reconstruction": 0.0, "kl": 0.0, "train": ["decoder", "dit"]},
        ],
    }
