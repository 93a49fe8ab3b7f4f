"""A masked language model with a bottleneck: a teacher of our own.

Command:  ldlm train --config configs/web_masked_lm.py --workdir runs/web_masked_lm
          and in any run that aligns: teacher.run=runs/web_masked_lm
Hardware: 2 virtual CPU cores with bf16 vector units (AMD EPYC), about 7 minutes beside other work.
Result:   cross-entropy 1.715 with up to 60 % of the tokens hidden, clean accuracy 1.000 (24
          November 2026, seed 0).

Up to 60 % of the tokens are hidden from the encoder and all are to be recovered, so the encoder
must say what it expects and not only what it sees.
"""


def get_config() -> dict:
    """The config: sections of plain values (see ``ldlm_jax/config.py``)."""
    return {
        "data": {"source": "web", "vocab_size": 4096, "window": 64},
        "text_vae": {
            "width": 256,
            "heads": 4,
            "encoder_layers": 3,
            "decoder_layers": 1,
            "latent_channels": 128,
            "dtype": "bfloat16",
            "remat": "full",
        },
        # Never used: every phase has diffusion 0. As small as it can be.
        "dit": {"width": 32, "heads": 2, "layers": 1},
        "autoencoding": {"token_mask": 0.6, "decoder_noise": 0.5},
        "optim": {"learning_rate": 5e-3, "warmup_steps": 20},
        "train": {
            "num_steps": 300,
            "batch_size": 64,
            "evals": ("reconstruction",),
            "eval_every": 300,
            "checkpoint_every": 300,
        },
        "phases": [{"diffusion": 0.0}],
    }
