"""Speed, memory and cost, and what the suite gives on real weights and data."""
