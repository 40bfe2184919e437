"""Run trees from inside other libraries. Each room is named after the library, and imports it."""
