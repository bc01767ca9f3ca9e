"""XTuner's presets and the config that is rendered from one of them."""
