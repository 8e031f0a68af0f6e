"""A network as the signal sees it: graph, state, transfer rules, the two sweeps. No framework."""
