"""Files: they are written whole or not at all, and read only after they were checked."""
