"""Reading data files: which files a path names, what their bytes are, and their rows one after another."""
