"""Hardware-aware efficient deep learning."""
