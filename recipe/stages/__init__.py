"""The pipeline: which stages a command runs, in the order in which data flows."""
