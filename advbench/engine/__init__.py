"""The attack engine: what an attack is, the model that answers it, and the search that runs it on many images."""
