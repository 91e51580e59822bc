"""A temporal shift folded into the 1x1 convolution that follows it."""
