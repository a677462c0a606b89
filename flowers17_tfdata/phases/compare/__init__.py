"""Two recipes, set side by side over their runs."""
