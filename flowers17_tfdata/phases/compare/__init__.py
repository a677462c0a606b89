"""The phase `compare`: two recipes, compared over pairs of runs."""
