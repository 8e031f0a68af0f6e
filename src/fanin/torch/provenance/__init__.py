"""Who wrote each tensor, what was asked of it, and what it holds now."""
