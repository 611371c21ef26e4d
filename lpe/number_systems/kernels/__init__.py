"""The same few operations per backend; ``reference`` is the definition that every other must match."""
