"""Values into tensors: of any type, on any device, sharded, deferred or whole."""
