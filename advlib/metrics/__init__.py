"""Error figures: pure functions from prediction tables to numbers and tables, without torch."""

# ruff: noqa: F401  (these names are imported from here)

from advlib.metrics.classes import class_changes, class_error, class_summary, confusion, group_error
from advlib.metrics.errors import (
    corruption_error,
    error,
    error_ratio,
    factor_error,
    factor_summary,
    mean_corruption_error,
    multilabel_error,
    multilabel_table,
    relative_reduction,
)
from advlib.metrics.intervals import (
    STATISTICS,
    BootstrapInterval,
    bootstrap,
    headings,
    over_seeds,
    summarise,
    t_interval,
)
from advlib.metrics.sampling import TwoPhase, two_phase
from advlib.metrics.tables import (
    ALEXNET_CORRUPTION_ERROR,
    CORRUPTIONS,
    IMAGE_COLUMNS,
    SharedImages,
    correct,
    counted,
    together,
)
