"""Real servers as child processes, and power counters that follow the machine's real CPU use."""
