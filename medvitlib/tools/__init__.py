"""Tools for the project itself: run its notebooks, check their figures, on several arithmetics of one processor."""
