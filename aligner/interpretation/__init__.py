"""Reading and steering the direction inside an Aligner that says how much it corrects."""
