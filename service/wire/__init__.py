"""Bytes to named arrays and back. Knows no HTTP and no model: what the names mean is checked above."""
