"""Judges: reward models that score responses, one file per family."""
