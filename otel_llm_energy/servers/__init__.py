"""Who answered a call: an address, its process tree, and its part of the machine's activity."""
