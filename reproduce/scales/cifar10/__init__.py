"""The scale ``cifar10``: a ResNet-20 on CIFAR-10, trained on one GPU in minutes."""
