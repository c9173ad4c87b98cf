"""`segrl.attribute` and `segrl.gather` on the paper's path, whose options a call may change one by one."""

from __future__ import annotations

from functools import partial

import segrl
from segrl.attribution import PAPER

attribute = partial(segrl.attribute, **PAPER)
gather = partial(segrl.gather, **PAPER)
