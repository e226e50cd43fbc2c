"""Measures of help without a judge, each beside the controls that could fool it."""
