"""Evaluation: metrics, intervals, baselines, estimates of test chunks."""
