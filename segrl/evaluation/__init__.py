"""Verdicts -> accuracies with intervals (statistics), and the files and tables that show them (results)."""
