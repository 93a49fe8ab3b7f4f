def get_config():
    return {
        "data": {"source": "web", "vocab_size": 4096, "window": 64},
        "text_vae": {
            "width": 256,
            "heads": 4,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "latent_channels": 32,
            "dtype": "bfloat16",
            "remat": True,
        },
        "dit": {"width": 256, "heads": 4, "layers": 6, "dtype": "bfloat16", "remat": True},
        "optim": {"name": "muon", "learning_rate": 3e-3, "warmup_steps": 30},
        "train": {"num_steps": 700, "batch_size": 64, "eval_every": 350, "log_every": 50},
        "phases": [
            {"until": 200, "diffusion": 0.0},
            {"until": -1, "train": ["dit"], "reconstruction": 0.0, "kl": 0.0},
        ],
    }
