"""Substrates that an ensemble is built on: a model with its data."""
