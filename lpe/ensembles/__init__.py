"""One file a method; ``base`` says what an ensemble is, ``selection`` which tensors are quantised."""
