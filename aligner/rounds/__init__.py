"""Corrected answers become data that train the upstream itself (the paper's weak-to-strong correction, table 4)."""
