"""Predictions, their metrics, and the loss landscape on which members lie."""
