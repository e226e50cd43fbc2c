"""The paper's experiments as files: `aligner reproduce NAME`."""
