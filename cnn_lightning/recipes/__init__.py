"""Recipes: one YAML file for each article, with the settings that differ from the defaults of the commands."""
