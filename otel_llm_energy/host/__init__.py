"""What else on this host calls the same servers: processes of one user share one metering, on a board.

One process holds the board (`turns`): it alone reads the meters and settles. The others are its members: they send
what happens to their calls and get bills back (`wire`, `hub`, `link`). What the holder enters (`shared`, `register`) it
also writes down (`journal`), so that the next holder continues where it stopped.
"""
