"""What a run leaves in its folder: states to go on from, their parts, and the models exported from them."""
