"""Loading a base or tuned model, talking to it, and measuring it."""
