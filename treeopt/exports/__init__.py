"""Numbers for serving engines: what to enter there, by one acceptance profile and latencies for each batch size, and what it should give."""
