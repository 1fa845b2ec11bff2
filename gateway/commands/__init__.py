"""The commands of `byline`, one module for each group of commands."""
