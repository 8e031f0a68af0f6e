"""The plan: what each parameter gets and why, as a value."""
