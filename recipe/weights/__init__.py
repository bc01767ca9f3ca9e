"""Trained weights: reading checkpoints, writing adapters, merging them into a base model and checking the result."""
