"""Training methods: one file for each method. The folder is the registry."""
