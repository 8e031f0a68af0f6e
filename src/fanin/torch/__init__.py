"""fanin for PyTorch: drop-in initializers, fans of layers, and the verbs on models."""
