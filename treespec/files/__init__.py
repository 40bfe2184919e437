"""Files: written whole or not at all, read only as far as they can be checked."""
