"""Training methods: one file a method; the folder is the registry."""
