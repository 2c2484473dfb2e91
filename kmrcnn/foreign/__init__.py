"""Configuration files of other systems, read key by key.

    recipe = kmrcnn.recipes.load("e2e_mask_rcnn_R_50_FPN_1x.yaml", ["SOLVER.BASE_LR", "0.0025"])

A family's file in this folder is a table: one row for each key that system knows, saying which setting it becomes or
why there is none; docs/configs.md shows the tables. Nothing is passed over in silence: what kmrcnn cannot follow is an
error that names the key, or a note if it does not change what is computed.
"""

from kmrcnn.foreign.detectron import DETECTRON
from kmrcnn.foreign.liangheming import LIANGHEMING
from kmrcnn.foreign.maskrcnn_benchmark import MASKRCNN_BENCHMARK, RES2NET, RETINAMASK
from kmrcnn.foreign.reader import Family, best_family, translate
from kmrcnn.foreign.rows import ForeignKeyError, Row

FAMILIES = (MASKRCNN_BENCHMARK, RES2NET, RETINAMASK, DETECTRON, LIANGHEMING)

__all__ = ["FAMILIES", "Family", "ForeignKeyError", "Row", "best_family", "translate"]
