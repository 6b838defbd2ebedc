"""Atomic files, checksums, safe loading, and which settings may differ on resume."""
