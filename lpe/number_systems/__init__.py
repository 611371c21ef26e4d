"""Number systems, and the rounding of weights to them."""
