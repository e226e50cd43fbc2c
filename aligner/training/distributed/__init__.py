"""Many processes as one run: who they are, where they run, that they live, how they are told to stop."""
