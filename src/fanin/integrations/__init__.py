"""fanin inside other tools: pytest, Lightning, transformers. Each file needs its tool installed."""
