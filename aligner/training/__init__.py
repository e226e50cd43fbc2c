"""Training an Aligner: configuration, data sets, the plan of a run, and the fine-tuning program."""
