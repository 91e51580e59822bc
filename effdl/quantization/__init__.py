"""Networks with quantized weights and activations whose Lipschitz constant is known."""
