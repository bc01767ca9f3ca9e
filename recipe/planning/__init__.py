"""What training will do, predicted before any GPU time is spent."""
