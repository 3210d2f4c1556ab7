"""The search copy: a faster twin of a network, whose hits the network itself verifies."""

from advbench.engine.search_copy.copy import SearchCopy, search_copy

__all__ = ["SearchCopy", "search_copy"]
