"""Which tokens of a trace carry the answer: integrated gradients with a completeness certificate."""

from segrl.attribution.engine import PAPER, attribute
from segrl.attribution.quadrature import RULES
from segrl.attribution.target import TEMPLATE

__all__ = ["PAPER", "RULES", "TEMPLATE", "attribute"]
