"""Long comparisons with random inputs, run by hand: scripts that pytest does not collect."""
