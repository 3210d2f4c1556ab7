"""Analyses of trained models: one file for each analysis. The folder is the registry."""
