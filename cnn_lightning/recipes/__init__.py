"""Recipes: one YAML file for each article, and ``default.yaml`` under all of them."""
