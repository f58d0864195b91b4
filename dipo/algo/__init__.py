"""Algorithms that change weights, biases and activation steps."""
