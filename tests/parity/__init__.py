"""Published models: the layer gives what the framework itself gives."""
