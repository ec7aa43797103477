"""Files of weights: native checkpoints, PyTorch's files and their conversion, downloads."""
