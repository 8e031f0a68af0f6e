"""Runs the claims of `experiments/`: data, training, a cache of finished work, verdicts, a report."""
