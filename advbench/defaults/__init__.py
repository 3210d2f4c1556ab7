"""What a command or a function chooses where it is not told: images, eps, models, devices, folders. Loads no torch."""
