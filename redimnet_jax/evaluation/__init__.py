"""Trials to results: protocols, scores, error rates with intervals, calibration, reports and plots."""
