"""Adding a direction to a model's hidden states while it decodes; `aligner interpret` finds directions."""
