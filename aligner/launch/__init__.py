"""One command for a whole run: it starts the ranks, watches them, and reports before and after."""
