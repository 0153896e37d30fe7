"""What goes wrong in production, done to a real service under load, and counted: `make chaos`; small in the tests."""
