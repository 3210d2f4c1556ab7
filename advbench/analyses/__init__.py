"""Analyses of trained models: one file an analysis; the folder is the registry."""
