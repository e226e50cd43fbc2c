"""The flags of `aligner COMMAND`, a file each. Heavy imports wait until a command runs."""
