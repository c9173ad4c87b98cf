"""Verdicts -> accuracies with intervals (statistics), and the files and tables that say them (results)."""
