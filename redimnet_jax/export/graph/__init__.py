"""Networks as ONNX graphs: one function for each kind of module, which writes what the module computes in eval mode.

Maps are (batch, channels, time) and (batch, channels, freq, time), as ONNX's convolutions take them; the channels of
a 1-D map are those of the network's, frequency by frequency. The graphs are dynamic in batch and time.
"""
