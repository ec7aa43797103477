"""Kernels for CUDA GPUs, written in CUDA C++ and compiled when a program that needs them is."""
