"""A platform for the device that torchvulkan brings."""
