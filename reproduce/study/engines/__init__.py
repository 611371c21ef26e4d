"""What runs the independent pieces of a scale's work in processes on many machines."""
