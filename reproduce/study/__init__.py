"""What a scale is, and how any scale is trained, measured and kept."""
