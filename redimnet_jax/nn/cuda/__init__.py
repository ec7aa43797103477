"""Kernels for CUDA GPUs, written in CUDA C++ and compiled when a program that needs them is.

As functions of arrays they are in `conv2d`, `mixing`, `narrow`, `depthwise`, `layer_norm`, `attention` and
`attentive_statistics`; what they stand for is where they are called. Maps are bfloat16 and channels last. Frames
outside `mask` (batch, time) count as zeros, as beyond the ends.
"""
