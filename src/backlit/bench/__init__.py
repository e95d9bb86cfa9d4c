"""Plans of many explanations and scores, run, resumed and gathered."""
