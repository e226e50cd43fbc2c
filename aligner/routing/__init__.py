"""Several Aligners, and for each question which of them corrects its answer: rules, then a small classifier."""
