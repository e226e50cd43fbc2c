"""Training an upstream on preferences, by TRL: flags -> its configuration, records -> its rows, and a finished folder."""
