"""Looking at data and corrections: how much was changed, what is unusable."""
