"""Operators with kernels of their own, one folder each; this version has none yet."""
