"""Operators with kernels of their own, one folder each."""
