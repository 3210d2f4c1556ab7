"""The attack engine: the attack protocol, the oracle that answers queries, and the search over many images."""
