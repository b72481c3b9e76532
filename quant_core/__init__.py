"""Quantization of FLUX and T5 weights, independent of any host."""
