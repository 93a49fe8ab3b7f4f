"""Whole verses from a real latent space: a TextVAE that sees context, and a DiT over the window.

Command:  ldlm train --config configs/whole_cpu_1h.py --workdir runs/whole_cpu_1h
Hardware: one virtual CPU core with bf16 units, an hour.
Result:   phrases hold, sentences do not yet; see experiments/whole_text/.
"""


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    return {
        # Verses share a row. With packing "pad" and pad_to_multiple 64 each has one alone, and its
        # end is learned like its words, at half the text a step.
        "data": {
            "source": "web",
            "vocab_size": 4096,
            "window": 64,
            "packing": "pack",
            "pad_to_multiple": 1,
        },
        "text_vae": {
            "width": 192,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "latent_channels": 16,
            "dtype": "bfloat16",
        },
        "dit": {
            "width": 256,
            "layers": 6,
            "time_tokens": 0,
            "offset_radius": 4,
            "dtype": "bfloat16",
        },
        # Up to half of the tokens are masked for the encoder, so that a latent says what stands
        # around it, too; and the decoder learns to read latents that are far off.
        "autoencoding": {"token_mask": 0.5, "decoder_noise": 1.5},
        # A time for each position in half of the rows; and times at which a narrow latent tells
        # much of its token, but not all.
        "diffusion": {
            "self_condition": 0.5,
            "time_location": 0.0,
            "per_token_times": 0.5,
            "prefix": 0.1,
            "infill": 0.1,
        },
        "optim": {"learning_rate": 3e-3, "warmup_steps": 50, "ema_decay": 0.998},
        "train": {
            "num_steps": 3200,
            "batch_size": 16,
            "eval_every": 1600,
            "checkpoint_every": 500,
        },
        "sample": {"steps": 50, "solver": "ancestral", "top_p": 0.9},
        # First the space. Then the denoiser, and the decoder with it, which learns to read what the
        # denoiser estimates beside what the encoder says.
        "phases": [
            {"until": 700, "diffusion": 0.0, "kl": 1e-3},
            {"token": 1.0, "reconstruction": 0.0, "kl": 0.0, "train": ["decoder", "dit"]},
        ],
    }
