"""One evaluation by one process or several: each attacks its share of the images, then the results are merged.

A verdict depends on its image and the slots alone, so that this is what one process would have found. The processes
are those of one torchrun (`ranks`), or on a CPU those that `processes` starts beside this one: two starters of the
same thing, with one way to name journals (`Journal.file`) and one to merge.
"""

from advbench.evaluator.parallel.merge import agreed
from advbench.evaluator.parallel.share import attacked, how_many

__all__ = ["agreed", "attacked", "how_many"]
