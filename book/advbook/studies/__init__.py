"""A study: its file, its runs, its tables."""
