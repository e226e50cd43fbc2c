"""A run as its user meets it: started by one command, and shown before and after."""
