"""Defaults that commands and functions share: images, eps, models, devices and folders. Importing it loads no torch."""
