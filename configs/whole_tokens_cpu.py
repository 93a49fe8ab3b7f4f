"""Whole windows from latents of single tokens: no encoder, and a DiT that sees the whole window.

Command:  ldlm train --config configs/whole_tokens_cpu.py --workdir runs/whole_tokens_cpu
Hardware: one virtual CPU core with bf16 units, three quarters of an hour.
Result:   phrases hold, sentences do not yet; see experiments/whole_text/.

Bayes' rule tells what a noisy latent says of its token (models/token_posterior.py). All that the
text needs of context is the DiT's.
"""


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    return {
        "data": {"source": "web", "vocab_size": 4096, "window": 64},
        # Few channels: the tokens that fit a place lie near each other, so that what a token is
        # comes out of the noise bit by bit, and not all at once.
        "text_vae": {
            "width": 256,
            "encoder_layers": 0,
            "decoder_layers": 0,
            "latent_channels": 8,
            "dtype": "bfloat16",
        },
        "dit": {
            "width": 256,
            "layers": 6,
            "time_tokens": 0,
            "offset_radius": 4,
            "dtype": "bfloat16",
        },
        "autoencoding": {"token_mask": 0.0},
        # In half of the rows every position has a time of its own: clearer ones teach what stands
        # beside them.
        "diffusion": {
            "self_condition": 0.5,
            "token_posterior": True,
            "token_variance": 1e-4,
            "time_location": -0.25,
            "per_token_times": 0.5,
            "prefix": 0.0,
            "infill": 0.0,
        },
        "optim": {"learning_rate": 3e-3, "warmup_steps": 50, "ema_decay": 0.999},
        "train": {
            "num_steps": 3600,
            "batch_size": 16,
            "eval_every": 1800,
            "checkpoint_every": 500,
        },
        "sample": {"steps": 100, "solver": "ancestral", "top_p": 0.9},
        "phases": [{"token": 2.0, "reconstruction": 0.0, "encoder_gradient": 1.0}],
    }
