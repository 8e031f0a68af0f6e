"""What a model is: its operations and parameters, recorded without touching it."""
