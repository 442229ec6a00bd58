"""Recipes: each file is one, and its name is the recipe's."""
