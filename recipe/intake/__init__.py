"""Readers of the files that questions and answers come in: each gives text, or says what is wrong and where."""
