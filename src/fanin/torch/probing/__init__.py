"""What one forward and one backward pass show: measured, and put beside the theory."""
