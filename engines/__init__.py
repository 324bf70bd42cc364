"""The guards that this project ships: a folder each, with a recipe.json and a head."""
