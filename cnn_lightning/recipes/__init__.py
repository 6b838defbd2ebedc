"""Recipes: one YAML file for each article and record, with the settings that differ from the defaults."""
