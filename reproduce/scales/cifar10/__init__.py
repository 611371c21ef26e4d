"""CIFAR-10: ``cifar10-small``, trained here on two cores, and ``cifar10``, on a GPU or from given points."""
