"""Yardsticks behind the Translator protocol: what a model must beat before it may claim anything."""
