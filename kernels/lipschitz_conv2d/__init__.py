"""A convolution with quantized weights and a bounded Lipschitz constant."""
