"""What numbers there are, and how a weight becomes one of them."""
