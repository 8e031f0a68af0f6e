"""Theory in float64: what a nonlinearity does to a Gaussian signal, and what weights follow."""
