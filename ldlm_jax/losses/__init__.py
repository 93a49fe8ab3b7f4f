"""What is minimised: pure functions of a denoiser, a batch and a key."""
