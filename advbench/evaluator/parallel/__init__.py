"""One evaluation by one or several processes: each attacks its share of the images, then the results are merged.

A verdict depends on its image and the number of slots alone, so the result is that of one process. The processes are
those of one torchrun (`ranks`) or, on a CPU, those that `processes` starts beside this one. Both name their journals
alike (`Journal.file`), and their results are merged alike.
"""

from advbench.evaluator.parallel.merge import agreed
from advbench.evaluator.parallel.share import attack_all, how_many

__all__ = ["agreed", "attack_all", "how_many"]
