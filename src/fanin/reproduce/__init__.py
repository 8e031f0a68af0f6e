"""Runs the claims of `experiments/`: data, training, finished work on disk, verdicts, a report."""
