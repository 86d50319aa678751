"""Measuring a translator: rows for each window, figures with intervals over people, goals, report."""
