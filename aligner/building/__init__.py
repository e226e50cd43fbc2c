"""From questions to corrections: building the data that an Aligner is trained on (paper, appendix D)."""
