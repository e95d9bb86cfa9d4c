"""Plans of many explanations and scores, run, resumed and gathered."""

FAST = "fast"
"""What a command line calls DMBP's short schedule."""
