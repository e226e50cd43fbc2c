"""Many processes as one run: their ranks and hosts, their heartbeats, requests to stop."""
