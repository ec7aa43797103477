"""Arithmetic on arrays: layers, normalization, convolutions, attention, and their kernels for CUDA GPUs."""
