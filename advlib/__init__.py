"""Class-wise adversarial robustness: training, attacks, tables and metrics."""

__version__ = "0.1.0"
