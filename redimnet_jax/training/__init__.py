"""Training runs: settings, data, steps, validation, checkpoints and reports."""
