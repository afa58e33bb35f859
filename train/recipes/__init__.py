"""Recipes that come with rankfold, by name: `rankfold train NAME`."""
