"""The demo: one network, one ratio where choosing matters, and the plan beside what one would do without it."""

from benchmarks.demo.comparison import Compared, Contender, compared
from benchmarks.demo.ratios import RATIOS, RULE, Tried, ratio_where_choosing_matters

__all__ = ["RATIOS", "RULE", "Compared", "Contender", "Tried", "compared", "ratio_where_choosing_matters"]
