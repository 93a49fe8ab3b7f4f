"""What a config needs on devices that are not there."""
