"""Attacks: one file an attack; the folder is the registry."""
