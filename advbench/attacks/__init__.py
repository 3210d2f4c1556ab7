"""The attacks, one file each. The folder is the registry."""
