"""What one would use instead of an Aligner: methods that need no training, and what each costs."""
