"""Starts XTuner's trainer, watches it, and resumes it; what runs inside it."""
