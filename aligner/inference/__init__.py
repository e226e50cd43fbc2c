"""Using an Aligner: corrections of anyone's answers."""
