"""The scales: the only room that knows one by name."""
