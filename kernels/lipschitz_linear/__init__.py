"""A linear layer with quantized weights and a bounded Lipschitz constant."""
