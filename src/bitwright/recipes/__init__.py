"""Recipes: chains of steps as YAML, shipped here or written by the user."""
